"""kl_flax: attention with a learned kernel, and the Long Range Arena, in JAX."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (HERE / 'kl_flax/__init__.py').read_text()).group(1)

# Lower bounds are what the code needs; constraints.txt holds the versions that it was tested with.
CORE = [  # Of kl_flax.
  'flatbuffers>=24.3',  # Files of exported models; jax.export imports it without declaring it.
  'flax>=0.12',  # Linen modules.
  'jax>=0.10,<0.12',
  'jaxtyping>=0.3',  # Shapes in signatures.
  'numpy>=2.0',
  'orbax-checkpoint>=0.12,<1',  # 1.0 changes the checkpoint manager.
]
LRA = [  # Of lra_tasks and configs.
  'absl-py>=2.1',
  'array_record>=0.8',  # Storage of prepared data sets.
  'grain>=0.2.18',  # Input pipeline whose state can be saved.
  'importlib_resources>=6.0',  # tensorflow-datasets imports it without declaring it.
  'ml_collections>=1.0',  # Configs and --config.
  'numba>=0.68',  # Compiles the loops that draw Pathfinder's paths, hundreds of attempts an image.
  'optax>=0.2.5',
  'pillow>=11.0',  # Decodes image files.
  'rich>=13.0',  # Progress bars.
  'tensorboardX>=2.6',  # TensorBoard summaries without TensorFlow.
  'tensorflow-datasets>=4.9.10,<5',  # Data set builders; needs no TensorFlow.
  'tokenizers>=0.20',  # Word pieces of language models: training a vocabulary, splitting words.
]
TEST = [
  'beartype>=0.20',  # Checks the annotated shapes in tests.
  'hypothesis>=6.100',
  'jupytext>=1.16',  # Notebooks have the cells of their sources.
  'matplotlib>=3.8',
  'pytest>=8.0',
  'pytest-xdist>=3.5',  # Two workers halve the time.
  'ruff>=0.12',
  'scikit-learn>=1.5',  # Metrics are compared with its own.
]
PLOTS = ['matplotlib>=3.8']  # Of speed, results and learned kernels.
# jupytext --to ipynb --set-kernel python3 --execute notebooks/NAME.py
NOTEBOOKS = ['ipykernel>=6.0', 'jupytext>=1.16', 'matplotlib>=3.8', 'nbconvert>=7.0']

setuptools.setup(
  name='kl_flax',
  version=VERSION,
  description='Attention with a learned kernel, and the Long Range Arena, in JAX and Flax',
  long_description=(HERE / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=['kl_flax*', 'lra_tasks*']),
  package_data={'lra_tasks': ['published_results.csv', 'results/**/*.json*']},
  install_requires=CORE,
  extras_require={
    'lra': LRA,
    'test': [*LRA, *TEST],
    'plots': PLOTS,
    'notebooks': [*LRA, *NOTEBOOKS],
    'cuda13': ['jax[cuda13]>=0.10,<0.12'],
  },
)
