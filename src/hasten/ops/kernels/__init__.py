"""C++ for CPUs: each function is named after the op that it must equal."""
