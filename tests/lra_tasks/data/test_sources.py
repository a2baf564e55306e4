import http.server
import pathlib
import re
import threading

import pytest

from lra_tasks.data import sources

DATA = bytes(range(256)) * 100


class _Server(http.server.BaseHTTPRequestHandler):
  """Serves DATA, as storage services do: a range, if it is of the version that is asked for."""

  data = DATA
  etag: str | None = '"one"'
  cut = None  # Close the connection after so many bytes.
  seen: list = []

  def do_GET(self):
    asked, version = self.headers.get('Range'), self.headers.get('If-Range')
    type(self).seen.append((asked, version))
    start = int(re.match(r'bytes=(\d+)-', asked)[1]) if asked and version == self.etag else 0
    self.send_response(206 if start else 200)
    self.send_header('Content-Length', str(len(self.data) - start))
    if self.etag:
      self.send_header('ETag', self.etag)
    self.end_headers()
    self.wfile.write(self.data[start : self.cut])

  def log_message(self, *args):
    pass


@pytest.fixture
def server():
  handler = type('Handler', (_Server,), {'seen': []})
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    handler.url = f'http://127.0.0.1:{running.server_port}/file'
    yield handler
    running.shutdown()


def fetch_cut(server, path, message='the same command goes on'):
  server.cut = 1000
  with pytest.raises(OSError, match=rf'ended after 1000 of {len(server.data)} bytes.*{message}'):
    sources.fetch(server.url, path)
  server.cut = None


def is_alone(path: pathlib.Path):
  return [file.name for file in path.parent.iterdir()] == [path.name]


def test_downloads_without_checksum_go_on_with_the_same_version(server, tmp_path):
  path = tmp_path / 'data/file'
  fetch_cut(server, path)
  sources.fetch(server.url, path)
  assert server.seen == [(None, None), ('bytes=1000-', '"one"')]
  assert path.read_bytes() == DATA
  assert is_alone(path)


def test_parts_of_two_versions_are_not_joined(server, tmp_path):
  path = tmp_path / 'data/file'
  fetch_cut(server, path)
  server.data, server.etag = DATA[::-1], '"two"'
  fetch_cut(server, path)
  sources.fetch(server.url, path)
  assert [version for _, version in server.seen] == [None, '"one"', '"two"']
  assert path.read_bytes() == DATA[::-1]
  assert is_alone(path)


@pytest.mark.parametrize('etag', [None, 'W/"one"'])
def test_without_version_a_download_begins_anew(server, tmp_path, etag):
  server.etag = etag
  path = tmp_path / 'data/file'
  fetch_cut(server, path, 'Fetch it by other means')
  sources.fetch(server.url, path)
  assert server.seen == [(None, None), (None, None)]
  assert path.read_bytes() == DATA
  assert is_alone(path)
