"""One token at a time through a whole network, in one native call for many tokens: see native.c.

pack.Builder       layers of plain tensors to a program
native.Network     the program, its weights, and calls of it
"""
