"""Attention with a learned kernel, in JAX and Flax."""

from kl_flax.attention import KernelAttention, kernel_attention, naive_kernel_attention
from kl_flax.encoder import Encoder
from kl_flax.features import fourier_features, positive_features
from kl_flax.heads import Classifier
from kl_flax.models import make_classifier
from kl_flax.predictor import Prediction, Predictor
from kl_flax.spectral import GaussianMixture, gmm_frequencies

__version__ = '0.1.0'

__all__ = [
  'Classifier',
  'Encoder',
  'GaussianMixture',
  'KernelAttention',
  'Prediction',
  'Predictor',
  'fourier_features',
  'gmm_frequencies',
  'kernel_attention',
  'make_classifier',
  'naive_kernel_attention',
  'positive_features',
]
