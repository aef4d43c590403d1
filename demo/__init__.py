"""The demo, installed as yolact-demo."""
