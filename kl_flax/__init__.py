"""Attention with a learned kernel, in JAX and Flax."""

from kl_flax.attention import KernelAttention, kernel_attention
from kl_flax.baselines.softmax import SoftmaxAttention
from kl_flax.causal import DecodingState, decode_step, init_decoding, prefill
from kl_flax.diagnostics import approximation_report, covariance_eigenvalues
from kl_flax.encoder import Encoder
from kl_flax.fastfood import FastFood, fastfood_frequencies
from kl_flax.features import fourier_features, positive_features, softmax_features
from kl_flax.hadamard import walsh_hadamard
from kl_flax.heads import Classifier, DualClassifier
from kl_flax.kernels import KernelInfo, kernel_info
from kl_flax.models import make_attention, make_classifier, make_masked_lm
from kl_flax.naive import naive_attention_weights, naive_kernel_attention
from kl_flax.orthogonal import Gaussian, OrthogonalGaussian, StructuredOrthogonal
from kl_flax.predictor import Prediction, Predictor
from kl_flax.spectral import Distribution, Frequencies, GaussianMixture, Generator, gmm_frequencies
from kl_flax.tokenizers import ByteTokenizer, PixelTokenizer, SymbolTokenizer
from kl_flax.votes import Vote
from kl_flax.wordpiece import WordPieceTokenizer, train_wordpiece

__version__ = '0.1.0'

__all__ = [
  'ByteTokenizer',
  'Classifier',
  'DualClassifier',
  'DecodingState',
  'Distribution',
  'Encoder',
  'FastFood',
  'Frequencies',
  'Gaussian',
  'GaussianMixture',
  'Generator',
  'KernelAttention',
  'KernelInfo',
  'OrthogonalGaussian',
  'PixelTokenizer',
  'Prediction',
  'Predictor',
  'SoftmaxAttention',
  'StructuredOrthogonal',
  'SymbolTokenizer',
  'Vote',
  'WordPieceTokenizer',
  'approximation_report',
  'covariance_eigenvalues',
  'decode_step',
  'fastfood_frequencies',
  'fourier_features',
  'gmm_frequencies',
  'init_decoding',
  'kernel_attention',
  'kernel_info',
  'make_attention',
  'make_classifier',
  'make_masked_lm',
  'naive_attention_weights',
  'naive_kernel_attention',
  'positive_features',
  'prefill',
  'softmax_features',
  'train_wordpiece',
  'walsh_hadamard',
]
