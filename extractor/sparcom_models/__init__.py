"""Make model folders: fetch a small real model, split it into an MoE model, fine-tune it, or make tiny random ones.

Each folder is a regular Hugging Face model folder with a SOURCE.json in it.
"""

from sparcom_models.fetch.fetch import fetch_model
from sparcom_models.fetch.known import KNOWN
from sparcom_models.folder import MadeModel
from sparcom_models.moefy.moefy import make_moefied_model
from sparcom_models.tiny.families import ARCHITECTURES
from sparcom_models.tiny.tiny import make_tiny_model

__all__ = ["ARCHITECTURES", "KNOWN", "MadeModel", "fetch_model", "make_moefied_model", "make_tiny_model"]
