"""Command-line programs, installed as yolact-*."""
