"""ONNX Runtime: a session bound to its arrays; it converts to its blocked layout inside."""

from functools import partial

import numpy as np

from .nodes import Network
from .onnx_model import onnx_model


def prepare(network: Network, threads: int):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Its threads would spin on after a run, into the time of the next engine.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(onnx_model(network), options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in network.inputs.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    (output,) = session.get_outputs()
    y = ort.OrtValue.ortvalue_from_shape_and_type(output.shape, np.float32)
    binding.bind_ortvalue_output(output.name, y)
    return partial(session.run_with_iobinding, binding), lambda _: y.numpy()[0].transpose(1, 2, 0)
