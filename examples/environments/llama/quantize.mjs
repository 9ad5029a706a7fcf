// Rounds the matrices of a GGUF file of f16 to blocks of 32 weights, as ggml
// does (ggml-quants.c, quantize_row_q8_0_ref and quantize_row_q4_0_ref):
//
//   node quantize.mjs q8_0|q4_0 FROM.gguf TO.gguf
//
// A block of q8_0 is a scale in f16 and 32 integers of 8 bits; one of q4_0 a
// scale in f16 and 16 bytes, each with a weight in its lower and the one 16
// further in its upper half.
import { readFileSync, realpathSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const F32 = 0, F16 = 1;
const KINDS = { q8_0: { type: 8, fileType: 7, bytes: 34 }, q4_0: { type: 2, fileType: 2, bytes: 18 } };

/** A float16 as a number. */
function half(bits) {
  const e = (bits >> 10) & 31, m = bits & 1023, s = bits & 0x8000 ? -1 : 1;
  if (e === 31) return m ? NaN : s * Infinity;
  return e === 0 ? s * m * 2 ** -24 : s * (1 + m / 1024) * 2 ** (e - 15);
}

/** The nearest float16, ties to even. */
function toHalf(v) {
  const s = v < 0 || Object.is(v, -0) ? 0x8000 : 0;
  let a = Math.abs(v);
  if (a >= 65520) return s | 0x7c00;
  const e = a < 2 ** -14 ? -14 : Math.floor(Math.log2(a));
  let m = a / 2 ** (e - 10); // in units of the last place
  const down = Math.floor(m);
  m = m - down > 0.5 || (m - down === 0.5 && down % 2 === 1) ? down + 1 : down;
  return s | (a < 2 ** -14 ? m : ((e + 15) << 10) + (m - 1024));
}

/** A GGUF file: its head as it is, and its tensors. */
function read(buf) {
  let at = 0;
  const u32 = () => buf.readUInt32LE((at += 4) - 4);
  const u64 = () => Number(buf.readBigUInt64LE((at += 8) - 8));
  const text = () => {
    const n = u64();
    return buf.toString("utf8", at, (at += n));
  };
  const sizes = [1, 1, 2, 2, 4, 4, 4, 1, , , 8, 8, 8];
  const skip = (kind) => {
    if (kind === 8) text();
    else if (kind === 9) {
      const inner = u32();
      for (let n = u64(); n > 0; n--) skip(inner);
    } else at += sizes[kind];
  };
  if (buf.toString("latin1", 0, 4) !== "GGUF") throw new Error("this is no GGUF file");
  at = 4;
  if (u32() !== 3) throw new Error("this is not version 3 of GGUF");
  const count = u64(), pairs = u64();
  let fileType = -1;
  for (let i = 0; i < pairs; i++) {
    const key = text(), kind = u32();
    if (key === "general.file_type") fileType = at;
    skip(kind);
  }
  const head = Buffer.from(buf.subarray(0, at));
  const tensors = [];
  for (let i = 0; i < count; i++) {
    const name = text();
    const shape = Array.from({ length: u32() }, u64);
    tensors.push({ name, shape, type: u32(), offset: u64() });
  }
  const data = at + ((-at % 32) + 32) % 32;
  return { head, fileType, tensors, data };
}

/** A row of 32 weights as a block. */
export function block(kind, x) {
  const out = Buffer.alloc(KINDS[kind].bytes);
  if (kind === "q8_0") {
    const d = Math.fround(Math.max(...x.map(Math.abs)) / 127);
    const id = d ? Math.fround(1 / d) : 0;
    out.writeUInt16LE(toHalf(d), 0);
    // roundf: halves away from zero.
    x.forEach((v, i) => out.writeInt8(Math.sign(v) * Math.floor(Math.fround(Math.abs(v) * id) + 0.5), 2 + i));
    return out;
  }
  // The weight with the greatest magnitude becomes -8.
  const max = x.reduce((m, v) => (Math.abs(v) > Math.abs(m) ? v : m), 0);
  const d = Math.fround(max / -8);
  const id = d ? Math.fround(1 / d) : 0;
  out.writeUInt16LE(toHalf(d), 0);
  const q = x.map((v) => Math.min(15, Math.trunc(Math.fround(Math.fround(v * id) + 8.5))));
  for (let i = 0; i < 16; i++) out[2 + i] = q[i] | (q[i + 16] << 4);
  return out;
}

export function quantize(kind, from, to) {
  if (!KINDS[kind]) throw new Error(`${kind} is neither q8_0 nor q4_0`);
  const buf = readFileSync(from);
  const { head, fileType, tensors, data } = read(buf);
  if (fileType >= 0) head.writeUInt32LE(KINDS[kind].fileType, fileType);
  const infos = [], bodies = [];
  let offset = 0;
  for (const t of tensors) {
    const n = t.shape.reduce((a, b) => a * b, 1), start = data + t.offset;
    let { type } = t;
    let body;
    if (t.type === F32) {
      body = buf.subarray(start, start + 4 * n); // norms stay as they are
    } else if (t.type === F16 && t.shape[0] % 32 === 0) {
      const blocks = [];
      for (let i = 0; i < n; i += 32) {
        blocks.push(block(kind, Array.from({ length: 32 }, (_, j) => half(buf.readUInt16LE(start + 2 * (i + j))))));
      }
      body = Buffer.concat(blocks);
      ({ type } = KINDS[kind]);
    } else throw new Error(`${t.name} is of type ${t.type} and has rows of ${t.shape[0]}`);
    const name = Buffer.from(t.name);
    const info = Buffer.alloc(8 + name.length + 4 + 8 * t.shape.length + 4 + 8);
    let at = info.writeBigUInt64LE(BigInt(name.length), 0);
    at += name.copy(info, at);
    at = info.writeUInt32LE(t.shape.length, at);
    for (const d of t.shape) at = info.writeBigUInt64LE(BigInt(d), at);
    at = info.writeUInt32LE(type, at);
    info.writeBigUInt64LE(BigInt(offset), at);
    infos.push(info);
    bodies.push(body, Buffer.alloc((32 - (body.length % 32)) % 32));
    offset += body.length + ((32 - (body.length % 32)) % 32);
  }
  const front = Buffer.concat([head, ...infos]);
  writeFileSync(to, Buffer.concat([front, Buffer.alloc((32 - (front.length % 32)) % 32), ...bodies]));
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const [kind, from, to] = process.argv.slice(2);
  if (!to) {
    console.error("usage: node quantize.mjs q8_0|q4_0 FROM.gguf TO.gguf");
    process.exit(2);
  }
  quantize(kind, from, to);
}
