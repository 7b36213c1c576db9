"""A hundred and fifty of the damaged files of benchmarks/data/verdicts.py: no crash, and never laxer than Pillow."""

import importlib.util
import io
import time
from pathlib import Path

import pytest
from PIL import Image
from test_images import photo

from facetclip import images
from facetclip.images import BadImage, read_rgb, shrink, verdict


@pytest.fixture(scope="module")
def mutations():
    path = Path(__file__).parents[1] / "benchmarks" / "data" / "mutations.py"
    spec = importlib.util.spec_from_file_location("mutations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pillow_reads(data):
    try:
        image = Image.open(io.BytesIO(data), formats=images.FORMATS)
        image.load()
    except Exception:
        return False
    return True


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_get_one_verdict_everywhere_and_pass_only_what_pillow_passes(mutations, tmp_path):
    for number in range(3):
        photo(240, 180, number).save(tmp_path / f"{number}.jpg")
    files = mutations.sources(sorted(tmp_path.glob("*.jpg")), edge=240)
    passed = 0
    for number in range(150):
        _, kind, data = mutations.mutated(files, 1, number)
        start = time.process_time()
        bad = verdict(data, decode=True)
        for use in (read_rgb, lambda data: read_rgb(data, at_least=32), lambda data: shrink(data, 64)):
            if bad is None:
                use(data)
            else:
                assert bad.code in images.CODES
                with pytest.raises(BadImage) as refused:
                    use(data)
                assert refused.value.code == bad.code
        assert bad is not None or pillow_reads(data), (number, kind)
        assert time.process_time() - start < 2
        passed += bad is None
    assert 10 < passed < 75, "most are noticed, and some are not damaged where it shows"


def test_the_same_seed_gives_the_same_damage(mutations):
    files = [("jpg", b"abcdefghij" * 100), ("png", b"0123456789" * 100)]
    first = [mutations.mutated(files, 3, number) for number in range(40)]
    assert first == [mutations.mutated(files, 3, number) for number in range(40)]
    assert len({kind for _, kind, _ in first}) == 7
