import shapes


def pytest_addoption(parser):
    parser.addoption(
        "--all-shapes",
        action="store_true",
        help="time every shape of shapes/real_networks.txt: a quarter of an hour",
    )


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        cases = shapes.load_cases(metafunc.config.getoption("--all-shapes"))
        metafunc.parametrize("case", cases, ids=str)
