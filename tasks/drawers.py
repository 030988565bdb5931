"""Drawers: folders whose files each hold one method, found by name.

A method is a `Section` (its parameters) that can do the work. Its file, its `name` and what a user
writes in params.yaml are one and the same word, so adding a method is adding a file.
"""

import importlib
import inspect
import pkgutil
from functools import cached_property
from types import ModuleType
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from tasks.errors import ParamsError
from tasks.sections import Section, hint, parse, tag_of

M = TypeVar("M", bound=Section)


class Drawer(Generic[M]):
    """The methods in one folder.

    Used in a section as `field: Annotated[Loss, LOSSES]`, it makes pydantic choose the method by
    its `name`.

    Args:
        package: The folder's dotted name, for example `tasks.losses`.
        contract: The class that every method in the folder extends.
    """

    def __init__(self, package: str, contract: type[M]) -> None:
        self.package = package
        self.contract = contract

    @property
    def noun(self) -> str:
        """The drawer's own name, for messages."""
        return self.package.rpartition(".")[2]

    @cached_property
    def methods(self) -> dict[str, type[M]]:
        """Every method of the drawer by name.

        Raises:
            ParamsError: A file defines no method, or one under another name than the file's.
        """
        folder = importlib.import_module(self.package)
        names = sorted(found.name for found in pkgutil.iter_modules(folder.__path__))
        return {
            name: self._method(importlib.import_module(f"{self.package}.{name}")) for name in names
        }

    def _method(self, module: ModuleType) -> type[M]:
        file_name = module.__name__.rpartition(".")[2]
        for _, found in inspect.getmembers(module, inspect.isclass):
            if issubclass(found, self.contract) and tag_of(found) == file_name:
                return found
        raise ParamsError(
            f"{module.__name__} defines no {self.contract.__name__} with name: "
            f'Literal["{file_name}"]; a file in {self.noun}/ holds the method of its name'
        )

    def parse(self, value: dict[str, Any], path: str = "") -> M:
        """Builds a method from plain data, for example from a model's stored spec.

        Raises:
            ParamsError: The name or one of the method's parameters is unknown or wrong.
        """
        name = str(value.get("name"))
        if name not in self.methods:
            raise ParamsError(f"{self.noun}: unknown name '{name}'{hint(name, list(self.methods))}")
        return parse(self.methods[name], value, path)

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        choices = {name: handler.generate_schema(found) for name, found in self.methods.items()}
        return core_schema.tagged_union_schema(choices, discriminator="name")
