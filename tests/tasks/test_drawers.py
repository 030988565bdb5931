import importlib
import itertools
import sys
from pathlib import Path
from typing import Annotated

import pytest

import tasks
from flows.methods import DRAWERS
from tasks.drawers import Drawer
from tasks.errors import ParamsError
from tasks.exporters import EXPORTERS
from tasks.losses import LOSSES
from tasks.sections import Section, parse

NUMBERS = itertools.count()
METHOD = """
from typing import Literal
from {package} import Greeting

class {title}(Greeting):
    name: Literal["{name}"] = "{name}"
    times: int = 1

    def say(self):
        return "{name} " * self.times
"""


@pytest.fixture
def drawer(tmp_path, monkeypatch):
    package = f"greetings_{next(NUMBERS)}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from tasks.sections import Section\nclass Greeting(Section):\n    name: str\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    add(folder, "hello")
    yield Drawer(package, importlib.import_module(package).Greeting), folder
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


def add(folder, name, file=None):
    text = METHOD.format(package=folder.name, title=name.title(), name=name)
    (folder / f"{file or name}.py").write_text(text)
    importlib.invalidate_caches()


def test_a_new_file_is_a_new_method(drawer):
    found, folder = drawer
    add(folder, "bye")
    assert sorted(found.methods) == ["bye", "hello"]
    assert found.parse({"name": "bye", "times": 2}).say() == "bye bye "


def test_a_file_without_its_own_method_is_refused(drawer):
    found, folder = drawer
    add(folder, "bye", file="farewell")
    with pytest.raises(ParamsError, match=r'farewell defines no Greeting with name.*"farewell"'):
        _ = found.methods


def test_an_unknown_name_is_answered_with_the_nearest_and_the_known(drawer):
    found, folder = drawer
    add(folder, "bye")
    with pytest.raises(ParamsError, match=r"'helo'; did you mean 'hello'\? \(known: bye, hello\)"):
        found.parse({"name": "helo"})
    with pytest.raises(ParamsError, match="unknown name"):
        found.parse({})


def test_wrong_parameters_of_a_method_are_refused_with_their_path(drawer):
    found, _ = drawer
    with pytest.raises(ParamsError, match=r"'spot\.times'"):
        found.parse({"name": "hello", "times": "2"}, "spot")


def test_as_a_field_it_chooses_by_name(drawer):
    found, folder = drawer
    add(folder, "bye")

    class Talk(Section):
        first: Annotated[found.contract, found]
        more: tuple[Annotated[found.contract, found], ...] = ()

    talk = parse(Talk, {"first": {"name": "bye"}, "more": [{"name": "hello", "times": 3}]})
    assert talk.first.say() == "bye "
    assert talk.more[0].say() == "hello hello hello "
    assert talk.plain()["first"] == {"name": "bye", "times": 1}


def test_its_noun_is_the_folder(drawer):
    found, folder = drawer
    assert found.noun == folder.name
    assert LOSSES.noun == "losses"


@pytest.mark.parametrize(
    "drawer",
    [*DRAWERS, EXPORTERS],
    ids=lambda drawer: drawer.noun,
)
def test_every_file_of_every_drawer_is_a_method(drawer):
    folder = Path(tasks.__file__).parent / drawer.noun
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert set(drawer.methods) == files
    assert files
    assert all(issubclass(method, drawer.contract) for method in drawer.methods.values())
