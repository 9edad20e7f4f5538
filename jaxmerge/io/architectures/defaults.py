"""What transformers takes where a config.json says nothing; GGUF files and the decoder need it.

>>> rms_eps("mixtral"), rms_eps("llama"), rope_theta("gemma3_text")
(1e-05, 1e-06, 1000000.0)
"""

from __future__ import annotations


def rms_eps(family: str) -> float:
    """The epsilon of a decoder's RMS norms (``rms_norm_eps``)."""
    return 1e-5 if family in ("phi3", "mixtral") else 1e-6


def rope_theta(family: str) -> float:
    """The base of its rotary frequencies (``rope_theta``)."""
    return 1e6 if family in ("gemma3_text", "mixtral") else 1e4
