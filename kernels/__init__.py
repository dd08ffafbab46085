"""Kernel sources, shipped as package data: C for the host, CUDA C++ for NVRTC.

The compiled host kernels are ``mpisign._kernels``; only ``mpisign.planes`` and
``mpisign.planes.counters`` call them.
"""
