"""Models on disk to run: a real small one fetched and converted, a mixture of experts made of it, tiny random ones.

Knows nothing of the engine; a folder that it makes is an ordinary Hugging Face model folder with a SOURCE.json in it.
"""

from sparcom_models.fetch.fetch import KNOWN, fetch_model
from sparcom_models.folder import MadeModel
from sparcom_models.moefy.moefy import make_moefied_model
from sparcom_models.tiny.tiny import ARCHITECTURES, make_tiny_model

__all__ = ["ARCHITECTURES", "KNOWN", "MadeModel", "fetch_model", "make_moefied_model", "make_tiny_model"]
