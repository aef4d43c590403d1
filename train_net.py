#!/usr/bin/env python3
"""Train and evaluate YOLACT or EmbedMask: the program yolact-train, without installing it."""

from yolact_d2.engine.train_net import main

if __name__ == "__main__":
    main()
