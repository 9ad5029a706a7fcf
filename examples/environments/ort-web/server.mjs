// Serves an ONNX model with the build of ONNX Runtime for browsers (WebAssembly).
// It is one of the example's deployment environments.
import { readFileSync, realpathSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as ort from "onnxruntime-web";
import { main, start as serve } from "../ort-oip.mjs";

const { version } = JSON.parse(readFileSync(new URL("node_modules/onnxruntime-web/package.json", import.meta.url)));
const about = { server: "ort-web-oip", runtime: `onnxruntime-web ${version}` };

// WebAssembly of one thread: more would need workers, and how many there are is
// part of what an environment is.
ort.env.wasm.numThreads = 1;

export const start = (options) => serve(ort, about, options);

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) await main(ort, about);
