import engines
import shapes


def pytest_addoption(parser):
    parser.addoption(
        "--all-shapes",
        action="store_true",
        help="time every shape of shapes/real_networks.txt: half an hour",
    )


def pytest_generate_tests(metafunc):
    if "engine" in metafunc.fixturenames:
        cases = shapes.load_all(metafunc.config.getoption("--all-shapes"))
        pairs = [(case, engine) for case in cases for engine in engines.of(case.op)]
        metafunc.parametrize("case, engine", pairs, ids=["-".join(map(str, p)) for p in pairs])
