"""Weights that are not plain arrays: block formats and their exact meaning in float32.

``ggml``   the block formats of GGUF files, as a table of (elements, bytes, decode).
``mxfp4``  four-bit floats as safetensors hold them (gpt-oss).
"""
