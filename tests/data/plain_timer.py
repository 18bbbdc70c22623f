"""A timer that shares nothing with hwloop: plain ONNX Runtime, wall clock, one thread.

python plain_timer.py A.onnx B.onnx [SECONDS]   prints {"a_ms": ..., "b_ms": ..., "ratio": a/b}
"""

import json
import os
import sys
import time

import numpy as np
import onnxruntime


def runner(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (tensor,) = session.get_inputs()
    feed = {tensor.name: np.random.default_rng(1).random(tensor.shape, np.float32)}
    return lambda: session.run(None, feed)


SECONDS = float(sys.argv[3]) if len(sys.argv) > 3 else 2.0
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
runs, times, end = [runner(path) for path in sys.argv[1:3]], ([], []), None
while end is None or time.perf_counter() < end:
    for run, values in zip(runs, times, strict=True):
        for _ in range(20):
            began = time.perf_counter()
            run()
            values.append(time.perf_counter() - began)
    if end is None:  # the first turn warms up
        times, end = ([], []), time.perf_counter() + SECONDS
a_ms, b_ms = (1000 * float(np.quantile(values, 0.1)) for values in times)
print(json.dumps({"a_ms": a_ms, "b_ms": b_ms, "ratio": a_ms / b_ms}))
