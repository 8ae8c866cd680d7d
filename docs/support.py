"""Write the README's support table from the registry.

python docs/support.py
"""

from pathlib import Path

from xsoftmax.implementations import REGISTRY
from xsoftmax.libraries.facts import FACTS

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- support table: python docs/support.py -->", "<!-- end of the support table -->"


def table():
    """One line for each library, in the registry's order."""
    lines = [
        "| backend | to install | floating dtypes | a label out of range | implementations, first come first served |",
        "|---|---|---|---|---|",
    ]
    for library in FACTS.values():
        serving = [entry for entry in REGISTRY if entry.library in (library.roots[0], "*")]
        served = [f"{entry.name} (where asked for)" if entry.off else entry.name for entry in serving]
        on_device = library.promises or not library.shows_values
        dtypes = "all four" if len(library.dtypes) == 4 else ", ".join(library.dtypes)
        label = "nan row" if on_device else "ValueError"
        lines.append(f"| `{library.name}` | `{library.install}` | {dtypes} | {label} | {', '.join(served)} |")
    return "\n".join(lines)


def updated(text):
    """The README with the table as it should be."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
