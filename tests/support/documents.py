"""The documents' commands: fenced `bash` blocks, `bash online` where they need a network, a GPU or another program."""

import re
import shlex
from dataclasses import dataclass

from tests.support.rows import ROOT

DOCUMENTS = (
    "README.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
    *("CONTRIBUTING.md", "recipes/README.md", "integrations/README.md"),
)
OPERATORS = {"&&", "||", "|", ";", ">", ">>", "<", "&"}


@dataclass(frozen=True)
class Command:
    """A command of a document.

    Attributes:
        document: Path of the document in the repository.
        line: The command as it is written, without its comment.
        online: Whether it needs a network, a GPU or another program.
    """

    document: str
    line: str
    online: bool

    @property
    def words(self) -> list[str]:
        """Its words, variables before it left out.

        Raises:
            ValueError: If it is more than one command.
        """
        words = shlex.split(self.line)
        if operators := OPERATORS & set(words):
            raise ValueError(f"write one command on a line, without {' '.join(sorted(operators))}")
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        return words

    @property
    def script(self) -> str | None:
        """The project's script that it runs, if it runs one."""
        return next((word for word in self.words if word.endswith(".py")), None)

    @property
    def arguments(self) -> list[str]:
        """The words after its script."""
        words = self.words
        return words[words.index(self.script) + 1 :] if self.script else []


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*", "", line).strip()


def read_block_commands(document: str) -> list[Command]:
    """Return the commands in the fenced blocks of a document, in their order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    commands = []
    for info, block in re.findall(r"^```bash([^\n]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if command := _without_comment(line):
                commands.append(Command(document, command, "online" in info))
    return commands


def read_text_commands(document: str) -> list[Command]:
    """Return the `make` and `python -m` commands in the running text of a document, unless they leave something out (…)."""
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`((?:[A-Z_]+=\S+ )*(?:make|python -m) [^`…]+)`", text)
    return [Command(document, " ".join(span.split()), False) for span in spans]
