"""Classification of pictures by a model of latents: encode with the codec of the model, then classify.

The latent is rounded as in a conversion, so a picture gets exactly the score of its stored latent. `attach_codec`
copies the encoder (about 10 kB) into the folder of a model, which is then all that serving needs.
"""

from walloc_data.serving.classifier import PictureClassifier, Prediction
from walloc_data.serving.loading import attach_codec, load_classifier, predict

__all__ = ["PictureClassifier", "Prediction", "attach_codec", "load_classifier", "predict"]
