"""Figures for people: how masks come about, how training went."""
