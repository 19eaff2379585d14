"""Inputs of layers in few bits: how they are rounded, by what scales, and which layers can stand it."""
