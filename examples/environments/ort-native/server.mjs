// Serves an ONNX model with the native build of ONNX Runtime.
// It is one of the example's deployment environments.
import { readFileSync, realpathSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as ort from "onnxruntime-node";
import { main, start as serve } from "../ort-oip.mjs";

const { version } = JSON.parse(readFileSync(new URL("node_modules/onnxruntime-node/package.json", import.meta.url)));
const about = { server: "ort-native-oip", runtime: `onnxruntime-node ${version}` };

export const start = (options) => serve(ort, about, options);

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) await main(ort, about);
