"""Reading a linked firmware: bytes by section, what each is for, and by symbol.

The linker script of an emulated board gives everything that depends on the model a section of its own, so that
every byte has one owner and the parts add up to the sections exactly. Nothing is run or built here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from ..errors import FedtinyError
from .devices import Device, Memory

# Output section -> (part in flash, part in RAM)
PARTS: dict[str, tuple[str | None, str | None]] = {
    ".vectors": ("code", None),
    ".text": ("code", None),
    ".rodata": ("code", None),
    ".ft_model": ("model", None),
    ".ft_selftest": ("selftest", None),
    ".ft_labels": ("labels", None),
    ".data": ("data", "data"),
    ".bss": (None, "bss"),
    ".ft_arena": (None, "arena"),
    ".stack": (None, "stack"),
}
FLASH_PARTS = ("code", "model", "selftest", "labels", "data")
RAM_PARTS = ("arena", "stack", "data", "bss")

_SHF_ALLOC = 2


@dataclass(frozen=True, slots=True)
class Section:
    """An allocated section; `loaded` says whether its bytes are in the file, and so in flash."""

    name: str
    address: int
    size: int
    loaded: bool


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function or object with its size; the address of a function has no Thumb bit."""

    name: str
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """A firmware image. `flash` and `ram` hold bytes by part and add up to the sections."""

    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    flash: dict[str, int]
    ram: dict[str, int]
    model: bytes = b""  # what the model's section holds

    @property
    def flash_bytes(self) -> int:
        """All that is loaded into flash."""
        return sum(self.flash.values())

    @property
    def ram_bytes(self) -> int:
        """All RAM that is spoken for: variables, arena and the stack's reserve."""
        return sum(self.ram.values())

    def symbol(self, name: str) -> Symbol | None:
        """The symbol of a name, if it is linked."""
        return next((symbol for symbol in self.symbols if symbol.name == name), None)


def read_image(path: Path, device: Device) -> Image:
    """Read an ELF file that was linked for an emulated board."""
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            sections, symbols = _sections(elf), _symbols(elf)
            model = elf.get_section_by_name(".ft_model")
            content = model.data() if model is not None else b""
    except (ELFError, OSError, ValueError) as error:
        raise FedtinyError(f"{path.name}: not a readable ELF file: {error}") from None
    if not sections:
        raise FedtinyError(f"{path.name}: an ELF file without sections: nothing was linked")
    flash = dict.fromkeys(FLASH_PARTS, 0)
    ram = dict.fromkeys(RAM_PARTS, 0)
    for section in sections:
        if section.name not in PARTS:
            raise FedtinyError(f"{path.name}: section {section.name} of {section.size:,} bytes belongs to no part")
        in_flash, in_ram = PARTS[section.name]
        _check_place(section, device, in_ram is not None)
        if in_flash is not None:
            flash[in_flash] += section.size
        if in_ram is not None:
            ram[in_ram] += section.size
    return Image(sections, symbols, flash, ram, content)


def _sections(elf: ELFFile) -> tuple[Section, ...]:
    found = []
    for section in elf.iter_sections():
        if section["sh_flags"] & _SHF_ALLOC and section["sh_size"]:
            loaded = section["sh_type"] != "SHT_NOBITS"
            found.append(Section(section.name, section["sh_addr"], section["sh_size"], loaded))
    return tuple(found)


def _symbols(elf: ELFFile) -> tuple[Symbol, ...]:
    table = elf.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        return ()
    found = []
    for symbol in table.iter_symbols():
        kind = symbol["st_info"]["type"]
        if symbol["st_size"] and kind in ("STT_FUNC", "STT_OBJECT"):
            address = symbol["st_value"] & ~1 if kind == "STT_FUNC" else symbol["st_value"]
            found.append(Symbol(symbol.name, address, symbol["st_size"]))
    return tuple(found)


def _check_place(section: Section, device: Device, in_ram: bool) -> None:
    region: Memory = device.region_for("arena" if in_ram else "code")
    if not (region.start <= section.address and section.address + section.size <= region.end):
        raise FedtinyError(
            f"section {section.name} lies at {section.address:#x} with {section.size:,} bytes; "
            f"{region.name} of {device.id} is {region.start:#x} to {region.end:#x}"
        )
