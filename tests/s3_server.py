"""A real S3 server on loopback with one bucket, `shop`, and what its clients need to know."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server() -> Iterator[tuple[str, Any]]:
    """Its address, and a client of boto3's."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    address = "http://{}:{}".format(*moto.get_host_and_port())
    client = boto3.client(
        "s3", endpoint_url=address, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
    )
    client.create_bucket(Bucket="shop")
    try:
        yield address, client
    finally:
        moto.stop()


def meet(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything that speaks S3 in this process ask that server."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # which may know another one
    for name, value in {"AWS_ENDPOINT_URL": address, **KEYS}.items():
        monkeypatch.setenv(name, value)
