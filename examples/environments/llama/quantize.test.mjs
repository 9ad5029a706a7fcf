// The blocks are those of ggml's own functions, which the package of llama.cpp
// carries: Python calls them.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { readGgufFileInfo } from "node-llama-cpp";
import { block, quantize } from "./quantize.mjs";

const f16 = fileURLToPath(new URL("../../models/assistant/assistant-f16.gguf", import.meta.url));
const library = join(dirname(createRequire(import.meta.url).resolve("@node-llama-cpp/linux-x64")), "..", "bins", "linux-x64", "libggml-base.so");
const dir = mkdtempSync(join(tmpdir(), "quantize-"));
after(() => rmSync(dir, { recursive: true }));

const PROGRAM = `
import ctypes, sys
lib = ctypes.CDLL(sys.argv[1])
raw = sys.stdin.buffer.read()
x, out = (ctypes.c_float * (len(raw) // 4)).from_buffer_copy(raw), ctypes.create_string_buffer(len(raw))
getattr(lib, "quantize_row_%s_ref" % sys.argv[2])(x, out, ctypes.c_int64(len(x)))
sys.stdout.buffer.write(out.raw[:len(x) // 32 * int(sys.argv[3])])
`;

/** What ggml makes of blocks of 32 numbers. */
function ggml(kind, blocks) {
  const raw = Buffer.alloc(128 * blocks.length);
  blocks.flat().forEach((v, i) => raw.writeFloatLE(v, 4 * i));
  return execFileSync("python3", ["-c", PROGRAM, library, kind, { q8_0: 34, q4_0: 18 }[kind]], { input: raw });
}

/** Blocks of every size that a float16 has, and the corners: zeros, signs, equal
 * numbers, ties between two steps and between two scales, the largest and the
 * smallest. */
function blocks() {
  let seed = 1;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647; // Park and Miller
  const list = [0, -0, 1, -1, 65504, -65504, 2 ** -24, -(2 ** -24)].map((v) => Array(32).fill(v));
  list.push(Array.from({ length: 32 }, (_, i) => (i - 16) / 2), Array.from({ length: 32 }, (_, i) => 127 - 8.5 * i), [-8, ...Array.from({ length: 31 }, (_, i) => 0.5 * i - 7.5)], [8, -8, ...Array(30).fill(0.5)]);
  for (const tie of [1, 3]) for (const x of [-8, 127]) list.push([x * (1 + tie / 2048), ...Array(31).fill(1)]);
  for (let e = -24; e <= 15; e++) {
    for (let n = 0; n < 50; n++) list.push(Array.from({ length: 32 }, () => Math.fround((2 * random() - 1) * 2 ** e)));
  }
  return list;
}

for (const kind of ["q8_0", "q4_0"]) {
  test(`blocks of ${kind} are ggml's, to the bit`, () => {
    const list = blocks(), want = ggml(kind, list), each = want.length / list.length;
    list.forEach((b, i) => assert.deepEqual(block(kind, b), want.subarray(i * each, (i + 1) * each), `block ${i}: ${b}`));
  });

  test(`a file of ${kind} has the tensors of the one it was made from`, async () => {
    const to = join(dir, `${kind}.gguf`);
    quantize(kind, f16, to);
    const [a, b] = await Promise.all([readGgufFileInfo(f16), readGgufFileInfo(to)]);
    const tensors = (x) => x.fullTensorInfo.map((t) => [t.name, t.dimensions.map(Number)]);
    assert.deepEqual(tensors(b), tensors(a));
    const type = { q8_0: 8, q4_0: 2 }[kind];
    assert.ok(b.fullTensorInfo.every((t) => t.ggmlType === (t.dimensions.length === 2 ? type : 0)));
    assert.equal(b.metadata.general.file_type, { q8_0: 7, q4_0: 2 }[kind]);
    assert.deepEqual(b.metadata.tokenizer, a.metadata.tokenizer);
    // One matrix of it, as ggml makes it of the same weights.
    const [from, into] = [a, b].map((x) => x.fullTensorInfo.find((t) => t.name === "blk.1.ffn_down.weight"));
    const n = from.dimensions.map(Number).reduce((x, y) => x * y);
    const raw = readFileSync(f16).subarray(Number(from.fileOffset));
    const half = (bits) => (bits & 0x8000 ? -1 : 1) * ((bits >> 10) & 31 ? (1 + (bits & 1023) / 1024) * 2 ** (((bits >> 10) & 31) - 15) : (bits & 1023) * 2 ** -24);
    const weights = Array.from({ length: n / 32 }, (_, i) => Array.from({ length: 32 }, (_, j) => half(raw.readUInt16LE(2 * (32 * i + j)))));
    const want = ggml(kind, weights), at = Number(into.fileOffset);
    assert.deepEqual(readFileSync(to).subarray(at, at + want.length), want);
  });
}
