"""Calibration for diffusion LLMs: text, masking, and the stream of activations through the blocks."""
