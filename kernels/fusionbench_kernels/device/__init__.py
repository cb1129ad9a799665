"""The Triton code itself; nothing here is imported until a kernel is launched."""
