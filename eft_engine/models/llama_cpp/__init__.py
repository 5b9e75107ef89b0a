"""The second runtime: networks of GGUF files, computed by llama.cpp (through llama-cpp-python's low-level interface)."""
