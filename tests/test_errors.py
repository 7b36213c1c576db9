"""What a message never says."""

import pytest

from facetclip.errors import first_line, redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pw@db/x and http://t0k@h/", "postgresql://***@db/x and http://***@h/"),
        ("http://me:p@ss@host/x", "http://***@host/x"),
        ("http://me@shop.lan:pw@host", "http://***@host"),
        ("http://me@shop.lan:p/w@host", "http://***@host"),
        ("http://me:12345@host", "http://***@host"),
        ("postgresql://user:pa/ss@db.lan/mlflow", "postgresql://***@db.lan/mlflow"),
        ("postgresql+psycopg2://user:p?a#ss@db.lan:5432/mlflow", "postgresql+psycopg2://***@db.lan:5432/mlflow"),
        ("postgresql://:pa/ss@db.lan/mlflow", "postgresql://***@db.lan/mlflow"),
        ("http://me:p@s/s@host:5000/x", "http://***@host:5000/x"),
        ("http://me:pw@[::1]:5000/x", "http://***@[::1]:5000/x"),
        ("https:/me:pw@host/run.toml", "https:/***@host/run.toml"),  # what a path makes of it
        ("https://h/x?pwd=a&auth=b&n=1", "https://h/x?pwd=***&auth=***&n=1"),
        ("mssql://h/x?password=a;passphrase=b", "mssql://h/x?password=***;passphrase=***"),
        ("https://h/x#access_token=ab", "https://h/x#access_token=***"),
        ("https://h/x?api%5Fkey=ab&x.jwt=cd", "https://h/x?api%5Fkey=***&x.jwt=***"),
        ("s3://b/k?X-Amz-Signature=ab12&X-Amz-Date=1", "s3://b/k?X-Amz-Signature=***&X-Amz-Date=1"),
    ],
)
def test_secrets_in_uris_are_hidden(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "a@b.c, see https://x/y@v1",
        "http://127.0.0.1:9000/photos/me@shop.jpg",
        "http://[::1]:9000/photos/me@shop.jpg",
        "https://shop.example?mail=a@b.c&author=me",
        "https://shop.example/x?at=12:30&mail=a@b.c",
        "s3://bucket/photo@2x.jpg",
        "models:/shop@champion and models:/shop/3",
        "sqlite:////home/me@work/mlflow.db",
        "shop.csv, row 3: expected a split, found 'a:b@c'",
    ],
)
def test_what_holds_no_secret_stays_readable(text: str) -> None:
    assert redacted(text) == text


def test_a_secret_at_the_cut_of_a_long_line_is_hidden() -> None:
    text = "x" * 180 + " http://me:a-long-secret@host"
    assert "secret" not in first_line(ValueError(text))
    assert "me:" not in first_line(ValueError(text))
