#!/usr/bin/env python3
"""Train and evaluate YOLACT or EmbedMask with a config in Python, such as configs/lazy/*.py."""

from yolact_d2.engine.lazy_train_net import main

if __name__ == "__main__":
    main()
