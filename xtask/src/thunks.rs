//! Does to a module's code beforehand what the kernel would do when it loads it, in a guest
//! without tracing and mitigations: calls that lead nowhere become nothing, jumps to a return
//! become returns, and calls by a detour become direct ones.
//!
//! The kernel finds these places by sections that the appliance's modules leave out, since under
//! TCG their use takes longer than all the rest of loading. Left as they are, each return of a
//! module's function would go through `warn_thunk_thunk`, which saves and restores registers to
//! warn once of just that.
//!
//! Source: arch/x86/kernel/alternative.c, arch/x86/lib/retpoline.S, arch/x86/kernel/ftrace.c of
//! Linux; System V ABI, AMD64 supplement, "Relocation".

use std::ops::Range;

/// A call of this number of bytes to another place: one of operation, four of distance.
const LENGTH: usize = 5;

const CALL: u8 = 0xe8;
const JUMP: u8 = 0xe9;

/// What is done instead of a call or jump to a function.
fn instead(operation: u8, function: &str) -> Option<[u8; LENGTH]> {
    /// Never reached, and stops whoever gets there (`int3`).
    const STOP: u8 = 0xcc;
    let nop = [0x0f, 0x1f, 0x44, 0, 0];
    match (operation, function) {
        (CALL, "__fentry__") => Some(nop),
        (JUMP, "__x86_return_thunk") => Some([0xc3, STOP, STOP, STOP, STOP]),
        _ => {
            let register = function.strip_prefix("__x86_indirect_thunk_")?;
            let number = u8::try_from(REGISTERS.iter().position(|name| *name == register)?).ok()?;
            // `call *%reg` and `jmp *%reg`, with a prefix for the upper eight.
            let (form, rest) = match operation {
                CALL => (0xd0, [0x0f, 0x1f, 0]),
                JUMP => (0xe0, [STOP; 3]),
                _ => return None,
            };
            let form = form | (number & 7);
            Some(match number < 8 {
                true => [0xff, form, rest[0], rest[1], rest[2]],
                false if operation == CALL => [0x41, 0xff, form, 0x66, 0x90],
                false => [0x41, 0xff, form, STOP, STOP],
            })
        }
    }
}

/// In the order of their numbers.
const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Replaces what can be replaced in `module`, an ELF file that is to be linked. Returns how many
/// places those were; `None` where the file is not of that kind.
pub fn replace(module: &mut [u8]) -> Option<usize> {
    const RELA: u32 = 4;
    const EXECUTABLE: u64 = 4;
    if module.get(..6)? != b"\x7fELF\x02\x01" || u16_at(module, 0x10)? != 1 {
        return None;
    }
    let sections = sections(module)?;
    let mut count = 0;
    for section in sections.iter().filter(|section| section.kind == RELA) {
        let code = sections.get(section.info)?;
        let symbols = sections.get(section.link)?;
        let names = sections.get(symbols.link)?;
        if code.flags & EXECUTABLE == 0 {
            continue;
        }
        for entry in section.bytes.clone().step_by(Relocation::LENGTH) {
            let relocation = Relocation::at(module, entry)?;
            let Some(place) = relocation.instruction(&code.bytes) else { continue };
            let function = symbol(module, symbols, names, relocation.symbol)?;
            if let Some(new) = instead(*module.get(place.start)?, &function) {
                module.get_mut(place)?.copy_from_slice(&new);
                Relocation::take_out(module, entry)?;
                count += 1;
            }
        }
    }
    Some(count)
}

/// A section of an ELF file.
struct Section {
    kind: u32,
    flags: u64,
    /// Where in the file.
    bytes: Range<usize>,
    link: usize,
    info: usize,
}

fn sections(module: &[u8]) -> Option<Vec<Section>> {
    const NO_BYTES: u32 = 8;
    const HEADER: usize = 0x40;
    let start = usize_at(module, 0x28)?;
    let count = usize::from(u16_at(module, 0x3c)?);
    (0..count)
        .map(|number| {
            let header = module.get(start.checked_add(number * HEADER)?..)?;
            let kind = u32_at(header, 4)?;
            let (at, length) = (usize_at(header, 0x18)?, usize_at(header, 0x20)?);
            let length = if kind == NO_BYTES { 0 } else { length };
            let bytes = at..at.checked_add(length)?;
            module.get(bytes.clone())?;
            Some(Section {
                kind,
                flags: u64_at(header, 8)?,
                bytes,
                link: u32_at(header, 0x28)? as usize,
                info: u32_at(header, 0x2c)? as usize,
            })
        })
        .collect()
}

/// `Elf64_Rela`
struct Relocation {
    offset: usize,
    kind: u32,
    symbol: usize,
    addend: u64,
}

impl Relocation {
    const LENGTH: usize = 24;

    fn at(module: &[u8], entry: usize) -> Option<Self> {
        Some(Self {
            offset: usize_at(module, entry)?,
            kind: u32_at(module, entry + 8)?,
            symbol: u32_at(module, entry + 12)? as usize,
            addend: u64_at(module, entry + 16)?,
        })
    }

    /// Where in the file the call or jump is whose distance this is, if it is one.
    fn instruction(&self, code: &Range<usize>) -> Option<Range<usize>> {
        const PC32: u32 = 2;
        const PLT32: u32 = 4;
        // A distance counts from the end of its four bytes.
        const TO_THE_START: u64 = (-4i64).cast_unsigned();
        let distance = [PC32, PLT32].contains(&self.kind) && self.addend == TO_THE_START;
        let start = code.start.checked_add(self.offset)?.checked_sub(1)?;
        let end = start + LENGTH;
        (distance && self.offset > 0 && end <= code.end).then_some(start..end)
    }

    /// Makes the relocation at `entry` one of nothing (`R_X86_64_NONE`).
    fn take_out(module: &mut [u8], entry: usize) -> Option<()> {
        module.get_mut(entry + 8..entry + Self::LENGTH)?.fill(0);
        Some(())
    }
}

/// The name of a symbol.
fn symbol(module: &[u8], symbols: &Section, names: &Section, number: usize) -> Option<String> {
    const ENTRY: usize = 24;
    let entry = module.get(symbols.bytes.clone())?.get(number.checked_mul(ENTRY)?..)?;
    let name = module.get(names.bytes.clone())?.get(u32_at(entry, 0)? as usize..)?;
    let end = name.iter().position(|&byte| byte == 0)?;
    Some(String::from_utf8_lossy(&name[..end]).into_owned())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn usize_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64_at(bytes, at)?).ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What `as` makes of some instructions, and what `objdump` shows of it after [`replace`].
    fn replaced(assembly: &str) -> (usize, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let (source, object) = (folder.path().join("a.s"), folder.path().join("a.o"));
        std::fs::write(&source, assembly).unwrap();
        let made = Command::new("as").arg("-o").args([&object, &source]).status().unwrap();
        assert!(made.success());
        let mut bytes = std::fs::read(&object).unwrap();
        let count = replace(&mut bytes).unwrap();
        std::fs::write(&object, bytes).unwrap();
        let mut show = Command::new("objdump");
        let shown = show.args(["-dr", "--no-show-raw-insn"]).arg(&object).output().unwrap();
        let lines = String::from_utf8(shown.stdout).unwrap();
        let instruction = |line: &str| {
            let (place, rest) = line.trim().split_once(":\t")?;
            let is_place = place.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_place.then(|| rest.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        let instructions = lines.lines().filter_map(instruction);
        (count, instructions.filter(|text| text != "int3").collect())
    }

    #[test]
    fn calls_and_jumps_become_what_the_kernel_would_make_of_them() {
        let (count, shown) = replaced(
            "f: call __fentry__\n\
             call __x86_indirect_thunk_rax\n\
             call __x86_indirect_thunk_r11\n\
             call other\n\
             jmp __x86_indirect_thunk_rdx\n\
             jmp __x86_indirect_thunk_r8\n\
             jmp __x86_return_thunk\n",
        );
        assert_eq!(count, 6);
        let expected = [
            "nopl 0x0(%rax,%rax,1)",
            "call *%rax",
            "nopl (%rax)",
            "call *%r11",
            "xchg %ax,%ax",
            "call 14 <f+0x14>",
            "jmp *%rdx",
            "jmp *%r8",
            "ret",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn other_uses_of_these_names_stay() {
        let (count, shown) = replaced(
            "f: jne __x86_return_thunk\n\
             call __x86_return_thunk\n\
             jmp __fentry__\n\
             call __x86_indirect_thunk_array\n\
             lea __x86_return_thunk(%rip), %rax\n\
             jmp __x86_return_thunk + 8\n",
        );
        assert_eq!(count, 0, "{shown:?}");
    }

    #[test]
    fn what_is_no_module_is_left_alone() {
        assert_eq!(replace(&mut []), None);
        assert_eq!(replace(&mut b"\x7fELF\x02\x01 and not much more".to_vec()), None);
        // A program that is linked already.
        let mut program = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(replace(&mut program), None);
    }
}
