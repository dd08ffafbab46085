"""The CUDA files on the CPU: built with g++, their threads run as fibres, every access checked."""
