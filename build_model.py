"""Build the convolutional neural network (CNN) that the other scripts train and evaluate.

python build_model.py
"""

import argparse
import os

from load_data import CLASSES, IMAGE_SHAPE, quiet_start, run

os.environ["KERAS_BACKEND"] = "tensorflow"  # even if the environment names another backend
with quiet_start():
    import keras
    import tensorflow as tf
    from keras import layers

    tf.config.list_physical_devices()  # looks for a GPU now: what it writes is held back, too
keras.config.set_image_data_format("channels_last")


def build_model():
    """Return the CNN, with fresh random weights and compiled.

    Input: float32 images of shape (n, 28, 28, 1) in [0, 1]. Output: float32 class
    probabilities of shape (n, 10). 93,322 trainable parameters.

    Compiled with Adam at its default learning rate, categorical cross-entropy (for one-hot
    labels) and accuracy.
    """
    model = keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE),
            layers.Conv2D(32, (3, 3), activation="relu"),  # 26x26x32
            layers.MaxPooling2D((2, 2)),  # 13x13x32
            layers.Conv2D(64, (3, 3), activation="relu"),  # 11x11x64
            layers.MaxPooling2D((2, 2)),  # 5x5x64
            layers.Conv2D(64, (3, 3), activation="relu"),  # 3x3x64
            layers.Flatten(),  # 576
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    return model


# Running as a script


def main():
    """Print the network's layers, output shapes and parameters."""
    argparse.ArgumentParser(description="Build the CNN and print its summary.").parse_args()
    build_model().summary()


if __name__ == "__main__":
    run(main)
