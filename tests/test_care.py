"""No harmful word stands in the repository, and no harmful set can be read without being withheld.

The words are kept as SHA-256 digests of their lower-case letters, so that the list itself is no
harmful text. To add one, without writing it into any file:

    python -c "import hashlib; print(hashlib.sha256(input().strip().lower().encode()).hexdigest())"

and type the word. A word is a run of letters: `a_word-here` has three. Only the exact form counts,
so a plural is an entry of its own.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from safety import unsafe_sets
from streams import catalog

ROOT = Path(__file__).parent.parent
PROBES = ROOT / "safety" / "probes"
UNSAFE_SETS = (
    "advbench", "do_not_answer", "figstep", "harmbench", "hateful_memes", "jailbreakv",
    "mm_safetybench", "rtvlm", "spa_vl", "strongreject", "vlguard", "xstest",
)  # fmt: skip
"""Published sets with harmful texts: a reader of one must bear its name and withhold it."""
OPENLY = frozenset({"Sample", "ask", "replace"})
"""What makes a sample, or changes one, without withholding it."""

HARMFUL = frozenset(
    {
        "01c06291df2a58e02f00db5aef08dd4892e99f3a4a87dd17b042b22b9750003e",
        "05e63c241b46cfaab2dd136950e737ca8031a8bdcbd5179e79e19b09cd81af9d",
        "0c9eff9d6b113fd85fcf30d08411e203fd6bd17b328d0c80736eea0845f4f580",
        "18d0f9c28d8c75f733add8e07805277cc6b1cda9eb9ef779977e97bf3ff80f95",
        "219ea80d50f346ce248c69e44112ba395ba056cde6091e7d89208e58290703e7",
        "244bfdd56011e7b18d910ae5655a99ebb60f9ec3e1b0576247a7761360d05492",
        "292316bdfbbbe4a0cca383873e2d7675bdfd16460bb4053d9d3ea8ddd5ac5da9",
        "2a6937d721b14cdd7331c1ad1caf6a3cfa37a266650807101d44cdcd0acb132f",
        "323e37c90b52ec4eeb23be54753718b48604984854646e663348958c6528832a",
        "32cc576002135ea107522224cc3c4b67ecb631d6364d0e74015ced9f7910b144",
        "369b450c3e4549ec0562ff1a483758da6cb0f0d48a5e45936675c3b2e2d4c71d",
        "38012c26a53b255b02e7162fe686047a48dbf94b5918d39fd3be9cae1bee1f44",
        "39c7ad800c5792108f3347580ce42c803545112e8cae98b20addb78a1e5295f6",
        "3baac3c260c357746278c3b066f492df520e8de2510c3e32014c17bac480f382",
        "4ab2fb51704e5350f2be5d9d3bd9f78e4e9ac2222cfd13093f3bc39f696d4e12",
        "5304378d007825ccb10495d27c4dbddbcc77040639b83e69bda4ebea0703cfbd",
        "59cc3cb8a42973019cddacdee59e0aa7746ba6c203af78cefb453cb3a1b6610d",
        "5a16a2337c05faa94dc08df7a7595d2558b3ecc8d7c625ba078d985510b3dca8",
        "61801799f956fdd5d906338b62b8b187c765fcaac27be18104295247e22aa9ce",
        "87595db4d28ba64dff0a500d83d52589b7457428a2c7397fffa7d3dac1fd1753",
        "8bedb0f81a005e35956b2ae60f4e8770dade2cbf4a5bb798a4b924ebb58211a1",
        "96bc3efe34f172edcb35becbc0eb9217933eedbe00eff8ee88589d74d0c407cb",
        "99859e350a5a8af7087ad8a9e2faeab9d38a6d7d2d9329dc57e208e507f8f404",
        "a76d588d0047e3b043406060ba6170e2313f46f15a084d680464f881f1efeeb9",
        "ab26f6966ee37fdf3b66775bf6d4f5541ae62ba85301ca534723a68cc7bfeba6",
        "afbb0f4f0c759fac051f4086ddf1b4f8790b974f0e40620da23067c14ec8ec08",
        "b46130a48b367b27d9c809521515c008ce5dc8a9a13689e94151fcb70d0e0b2b",
        "b70e74e842592f6505b31daf621ead479ab2e4c0e65904c16e25e4c34365b4e1",
        "c9233488f759b5ffeedaf745bbf9f22a58842ec7a5123580a88a4c135db6f1f5",
        "dd32831e9d5f3da30c303bff83974931551409ef690c5233c3923923162c95eb",
        "e11e639e7578bfa2585ee4263d2eda391111a6ff18f75ec441f38907085f82fc",
        "e3dc18bf46424d38a1d56a2944ad185d8b47296788eddc12ae0db1448c87247b",
        "ee6f01a92dd8063b3236964c9987e1a4310cb2f91d19f9c0162e815229f2608f",
        "fcb0a0a76bdc19eefbc210d24378f256a1307d1eb6b77089804bea27cae3c292",
    }
)
"""Digests of names of drugs, weapons, poisons, crimes and self-harm."""


def _harmful(text: str, digests: Collection[str] = HARMFUL) -> Iterator[str]:
    """Digests of the harmful words of a text."""
    for word in sorted(set(re.findall(r"[^\W\d_]+", text.lower()))):
        digest = hashlib.sha256(word.encode()).hexdigest()
        if digest in digests:
            yield digest


def _texts() -> Iterator[tuple[str, str]]:
    """Every text file that is in the repository, or would be after `git add`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout: which files belong to it is not known")
    for name in listed.decode("utf-8", "replace").split("\0"):
        path = ROOT / name
        if name and path.is_file():
            try:
                yield name, path.read_text("utf-8")
            except UnicodeDecodeError:
                continue  # no text


def test_no_harmful_word_is_in_the_repository() -> None:
    read = 0
    for name, text in _texts():
        read += 1
        for found in (*_harmful(text), *_harmful(name)):
            pytest.fail(f"{name}: holds the word whose SHA-256 begins with {found[:12]}")
    assert read > 100


def test_the_guard_finds_a_word_in_any_case_and_place() -> None:
    digests = {hashlib.sha256(b"marzipan").hexdigest()}
    for text in ("MARZIPAN!", "x_marzipan_2", '{"a": "No-Marzipan."}', "two\nmarzipan\n"):
        assert len(list(_harmful(text, digests))) == 1
    for text in ("marzipans", "marzi pan", ""):
        assert not list(_harmful(text, digests))
    assert len(HARMFUL) >= 30
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in HARMFUL)


def _called(source: str) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]


def test_a_sample_of_an_unsafe_set_cannot_be_made_openly() -> None:
    assert "withheld" not in inspect.signature(unsafe_sets.sample).parameters
    source = inspect.getsource(unsafe_sets)
    (made,) = [call for call in _called(source) if ast.unparse(call.func) in OPENLY]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in made.keywords}
    assert given["withheld"] == "True"


def _readers() -> list[str]:
    """Probes that read unsafe sets: by name, or because they use what such readers share."""
    return [
        name
        for name in catalog.names("safety.probes")
        if name in UNSAFE_SETS or "unsafe_sets" in (PROBES / f"{name}.py").read_text("utf-8")
    ]


@pytest.mark.parametrize("name", _readers())
def test_a_reader_of_an_unsafe_set_makes_withheld_samples_only(name: str) -> None:
    calls = {call: ast.unparse(call.func) for call in _called((PROBES / f"{name}.py").read_text())}
    assert "unsafe_sets.sample" in calls.values() or set(calls.values()) & OPENLY
    for call, function in calls.items():
        if function in OPENLY | {"dataclasses.replace"}:
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("withheld") == "True", ast.unparse(call)
    assert "withheld" not in catalog.find("safety.probes", name, where=name).__dataclass_fields__


def test_all_readers_are_checked() -> None:
    assert set(_readers()) >= {
        "bbq", "crows_pairs", "figstep", "mm_safetybench", "stereoset", "xstest",
    }  # fmt: skip
