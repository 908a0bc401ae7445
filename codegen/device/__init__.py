"""Device functions of the generated kernels: plain Triton and Gluon, importable, linted and tested one by one.

A generated kernel file is a thin entry point and the closure of the functions here that it uses, copied in
(`qspec.kernels.emit`), so that the file stands alone. Names are therefore unique across these modules. Groups of
arguments are NamedTuples, which Triton 3.6 and 3.9 and the interpreter all pass through; flags are constexpr.
"""
