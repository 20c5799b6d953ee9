"""Byte-level language models: any text, 256 tokens, bits per byte, generation in constant memory."""
