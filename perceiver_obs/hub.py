"""Saving and loading: a directory with `config.json` and `model.safetensors`, never pickle."""

import hashlib
import itertools
import json
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from perceiver_obs.files import write_atomic
from perceiver_obs.isolation import isolated, one_thread_if_forked

FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
BESIDE = ("data.json", "settings.json", "objective.safetensors")  # what a model was trained on, and how
HUB = "hf://"
_HUB_NAME = re.compile(r"hf://(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s]+))?")
_EXPECTED = f"a model is a directory with {CONFIG_FILE} and {WEIGHTS_FILE}"
_SEPARATORS = tuple(filter(None, (os.sep, os.altsep)))


class Pretrained(PyTorchModelHubMixin):
    """Adds `save_pretrained`, `from_pretrained` and `push_to_hub` to a module whose arguments are plain values.

    Attributes:
        FORMER_ARGUMENTS: that the constructor no longer takes, by the value that saved models may have for them.
        LATER_ARGUMENTS: that it did not always take, by what models without them do.
        FORMER_TENSORS: beginnings of names in files of earlier versions, and what they are now; None leaves aside.
        bundled_name: under which the weights ship in the package, None for all others.
        known_as: fingerprints that files of earlier versions gave these weights, by what they are now.
    """

    FORMER_ARGUMENTS: ClassVar[dict[str, Any]] = {}
    LATER_ARGUMENTS: ClassVar[dict[str, Any]] = {}
    FORMER_TENSORS: ClassVar[dict[str, str | None]] = {}
    bundled_name: str | None = None
    known_as: Mapping[str, str] = {}

    @property
    def fingerprint(self) -> str:
        """Hash of the configuration and all weights: contexts of equal fingerprints mean the same."""
        assert isinstance(self, nn.Module)
        digest = self._digest(self.state_dict())
        return self.known_as.get(digest, digest)

    def _digest(self, tensors: Mapping[str, Tensor]) -> str:
        # Policies are bound to fingerprints: an argument that models used not to have counts only where it is used,
        # and one that they used to have counts on.
        config = self.FORMER_ARGUMENTS | self.config()
        counted = {k: v for k, v in config.items() if k != "frame_contract" and self.LATER_ARGUMENTS.get(k, ...) != v}
        digest = hashlib.sha256(json.dumps(counted, sort_keys=True).encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, which `config.json` holds."""
        return dict(self._hub_mixin_config)  # type: ignore[arg-type]

    def save_pretrained(  # type: ignore[override]  # the mixin's other options mean nothing here
        self, save_directory: str | Path, *, half_precision: bool = False, **push: Any
    ) -> None:
        """Write `config.json` and `model.safetensors` into a directory, each whole or not at all.

        `half_precision` stores matrices and kernels as float16: a file of half the size, whose contexts differ in
        the third digit. They are loaded as float32 again.
        """
        directory = Path(save_directory)
        assert isinstance(self, nn.Module)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        if half_precision:
            large = {name for name, parameter in self.named_parameters() if parameter.ndim >= 2}
            weights = {name: tensor.half() if name in large else tensor for name, tensor in weights.items()}
        write_atomic(directory / WEIGHTS_FILE, save(weights))
        config = {"class": type(self).__name__, "format_version": FORMAT_VERSION, **self.config()}
        digest = self._digest(self.state_dict())
        if digest in self.known_as and not half_precision:
            config["known_as"] = {digest: self.known_as[digest]}
        write_atomic(directory / CONFIG_FILE, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
        if push.pop("push_to_hub", False):
            self.push_to_hub(**push)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> Self:  # type: ignore[override]
        """Load weights and configuration, as float32, in eval mode on the CPU; draws no random numbers.

        Args:
            name: the name of a bundled model (`bundled_models()`), a directory, or "hf://owner/name@revision" of the
                Hugging Face hub, which alone reaches the network; see `find_pretrained`.
            revision: branch, tag or commit, for names of the hub that have none.

        Raises:
            FileNotFoundError: no such directory, bundled model, or model at the hub.
            ValueError: the directory holds no model, or a revision is asked of what is not at the hub; a file is
                missing, cut short, of another version or of another class, or its tensors do not fit the
                configuration.
        """
        one_thread_if_forked()
        directory = find_pretrained(name, revision)
        config = _read_config(directory / CONFIG_FILE, cls.__name__)
        known_as = config.pop("known_as", {})
        for argument, value in cls.FORMER_ARGUMENTS.items():
            if config.pop(argument, value) != value:
                raise ValueError(f"{directory / CONFIG_FILE} asks for {argument}, which is no longer supported")
        weights = directory / WEIGHTS_FILE
        try:
            with safe_open(weights, "pt") as tensors, isolated():
                shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118 (no map)
                model = _build(cls, config, directory, current_names(shapes, cls.FORMER_TENSORS))
                saved = {key: tensors.get_tensor(key) for key in shapes}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{weights} is missing or not a whole safetensors file: {error}") from error
        state = current_names(saved, cls.FORMER_TENSORS)
        model.load_state_dict(state)
        model.eval()
        model.known_as = known_as
        if state.keys() != saved.keys():
            before = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in saved.items()}
            former = model._digest(before)
            model.known_as = {model._digest(model.state_dict()): known_as.get(former, former)}
        model.bundled_name = next((n for n, p in bundled_models().items() if p.resolve() == directory.resolve()), None)
        return model


def current_names(saved: Mapping[str, Any], former: Mapping[str, str | None]) -> dict[str, Any]:
    """What a file of an earlier version holds, by the names of this one; `former` as in `Pretrained`."""
    current = {}
    for name, value in saved.items():
        beginning = next((each for each in former if name.startswith(each)), None)
        if beginning is None:
            current[name] = value
        elif (now := former[beginning]) is not None:
            current[now + name.removeprefix(beginning)] = value
    return current


def bundled_models() -> dict[str, Path]:
    """The models that ship in the package, by name."""
    root = Path(str(files("perceiver_obs"))) / "pretrained"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{CONFIG_FILE}"))}


def find_pretrained(name: str | Path, revision: str | None = None) -> Path:
    """The directory of a model.

    Args:
        name: a string that begins with "hf://" is downloaded from the hub, or taken from its cache. One of
            `bundled_models()` is that, whatever else has the name here: write "./dmc-small" for a directory.
            All else, and any `Path`, is a directory here.
        revision: for names of the hub that have none.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the name is malformed or that of a file, or a revision is asked of what is not at the hub.
    """
    if isinstance(name, str) and name.startswith(HUB):
        return _download(name, revision)
    if revision is not None:
        raise ValueError(f"a revision is for models of the hub ({HUB}owner/name), got {revision!r} of {name!r}")
    bundled = bundled_models()
    if isinstance(name, str) and name in bundled:
        if Path(name).is_dir():
            message = f"{name!r} is the model that ships in the package; write './{name}' for the directory here"
            warnings.warn(message, stacklevel=2)
        return bundled[name]
    if not str(name) or not Path(name).exists():
        raise FileNotFoundError(_missing(name, sorted(bundled)))
    if not Path(name).is_dir():
        raise ValueError(f"{name} is a file; {_EXPECTED}")
    return Path(name)


def saved_class(name: str | Path) -> str | None:
    """The class of the model in a directory, as its `config.json` says; None where that cannot be read."""
    try:
        return json.loads((find_pretrained(name) / CONFIG_FILE).read_text()).get("class")
    except (OSError, ValueError, AttributeError):
        return None


def directory_name(directory: Path) -> str:
    """A directory as a string that `find_pretrained` takes for nothing else."""
    return str(directory) if len(directory.parts) > 1 else os.path.join(os.curdir, directory)


def _download(name: str, revision: str | None) -> Path:
    match = _HUB_NAME.fullmatch(name)
    if match is None or (revision is not None and match["revision"] is not None):
        raise ValueError(f"models of the hub are written {HUB}owner/name or {HUB}owner/name@revision, got {name!r}")
    try:
        patterns = [CONFIG_FILE, WEIGHTS_FILE, *BESIDE]
        return Path(snapshot_download(match["id"], revision=match["revision"] or revision, allow_patterns=patterns))
    except Exception as error:
        raise FileNotFoundError(f"the hub did not give {name!r}: {error}") from error


def _missing(name: str | Path, bundled: list[str]) -> str:
    if isinstance(name, str) and not any(separator in name for separator in _SEPARATORS):
        return f"model {name!r} is neither a directory here nor one of {bundled}; of the hub write {HUB}owner/name"
    text = f"there is no directory {str(name)!r}"
    at_hub = HUB + str(name)
    return f"{text}; for the model of the hub write {at_hub}" if _HUB_NAME.fullmatch(at_hub) else text


def _no_model(path: Path) -> str:
    """Why a directory is no model, and what the way out may be."""
    inside = sorted(entry.name for entry in path.iterdir())
    models = sorted(str(config.parent) for pattern in ("*", "*/*") for config in path.glob(f"{pattern}/{CONFIG_FILE}"))
    if models:
        return f"{path} holds no {CONFIG_FILE} itself, but there are models inside: {', '.join(models[:5])}"
    if "settings.json" in inside or "checkpoint.safetensors" in inside:
        return f"{path} holds no {CONFIG_FILE}: its training has not finished; run the same command again to go on"
    what = f"{', '.join(inside[:5])}{' …' if len(inside) > 5 else ''}" if inside else "nothing"
    return f"{path} holds no {CONFIG_FILE}, but {what}; {_EXPECTED}"


def _read_config(path: Path, class_name: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(_no_model(path.parent)) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")
    saved_class, version = config.pop("class", None), config.pop("format_version", None)
    if saved_class != class_name:
        raise ValueError(f"{path} describes a {saved_class}, expected a {class_name}")
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {version!r}, this version reads {FORMAT_VERSION}")
    known_as = config.get("known_as", {})
    if not isinstance(known_as, dict) or not all(isinstance(value, str) for value in known_as.values()):
        raise ValueError(f"{path} must hold fingerprints by fingerprint as known_as, got {known_as!r:.80}")
    return config


def _build(cls: type, config: dict[str, Any], directory: Path, shapes: dict[str, tuple[int, ...]]) -> Any:
    """Build the model only if its tensors are those of the file: absurd sizes must not be allocated."""
    try:
        with torch.device("meta"), _at_most_parameters(10 * len(shapes)):
            sketch = cls(**config)
    except Exception as error:
        raise ValueError(f"{directory / CONFIG_FILE} does not describe a {cls.__name__}: {error}") from error
    expected = {key: tuple(tensor.shape) for key, tensor in sketch.state_dict().items()}
    if expected != shapes:
        differing = sorted(key for key in expected.keys() | shapes.keys() if expected.get(key) != shapes.get(key))
        raise ValueError(
            f"{directory / WEIGHTS_FILE} does not fit its config.json: {len(differing)} tensors differ, "
            f"first {differing[0]!r} (file {shapes.get(differing[0])}, config {expected.get(differing[0])})"
        )
    return cls(**config)


@contextmanager
def _at_most_parameters(limit: int) -> Iterator[None]:
    """Ends in a ValueError what would make more: absurd numbers of layers must not be waited for."""
    made, here = itertools.count(1), threading.get_ident()  # the hook is for all threads

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if threading.get_ident() == here and next(made) > limit:
            raise ValueError(f"it would have more than {limit} parameters")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
