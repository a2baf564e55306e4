import jax
import jax.numpy as jnp
import numpy as np

from kl_flax.numerics import einsum_float32


def test_the_cpu_of_a_machine_with_a_gpu_multiplies_16_bits(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.bfloat16)
  expected = np.einsum('bik,bjk->bij', *[np.asarray(x, np.float32)] * 2)
  for device in (jax.local_devices(backend='cpu')[0], 'cpu'):
    with jax.default_device(device):
      found = jax.jit(lambda x: einsum_float32('bik,bjk->bij', x, x))(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
