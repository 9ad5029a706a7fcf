// Package openai speaks the HTTP interface of OpenAI, as it and those who
// copied it serve it: chat completions, completions and embeddings, whole or
// streamed.
//
// A question is the request in the interface's own words, without the model.
// Every parameter that servers choose different defaults for is sent, so that
// what was asked does not depend on who was asked; and an answer that shows
// that a parameter was not heeded is none ("ignored").
package openai

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// Names of the protocols in environment documents.
const (
	NameChat        = "openai-chat"
	NameCompletions = "openai-completions"
	NameEmbeddings  = "openai-embeddings"
)

// Options are those of a target document.
type Options struct {
	// Dialect says which parameters the server has beyond OpenAI's: "openai"
	// (none; the default), "vllm" or "llama.cpp".
	Dialect string `json:"dialect,omitempty"`

	// Defaults are sent where a question does not say otherwise, before ours.
	// One that is null is not sent at all: for a server that refuses it.
	Defaults map[string]json.RawMessage `json:"defaults,omitempty"`

	TokenFrom string `json:"tokenFrom,omitempty"` // the environment variable with the API key
}

// defaults are the parameters that servers disagree about, by protocol. They
// make an answer as repeatable as it can be.
var defaults = map[string]map[string]string{
	NameChat: {
		"temperature": "0", "top_p": "1", "n": "1", "seed": "1", "max_tokens": "256", "presence_penalty": "0", "frequency_penalty": "0",
		"stop": "null", "stream": "false", "logprobs": "false", "response_format": `{"type":"text"}`,
	},
	NameCompletions: {
		"temperature": "0", "top_p": "1", "n": "1", "seed": "1", "max_tokens": "256", "presence_penalty": "0", "frequency_penalty": "0",
		"stop": "null", "stream": "false", "logprobs": "null", "echo": "false", "best_of": "1",
	},
	NameEmbeddings: {"encoding_format": `"float"`},
}

// dialects are the parameters of servers beyond OpenAI's. vLLM takes those
// that are not sent from the model's generation_config.json, llama.cpp has
// samplers of its own in front.
var dialects = map[string]map[string]string{
	"openai": {},
	"vllm": {
		"top_k": "-1", "min_p": "0", "repetition_penalty": "1", "length_penalty": "1", "ignore_eos": "false", "min_tokens": "0", "skip_special_tokens": "true",
	},
	"llama.cpp": {
		"top_k": "0", "min_p": "0", "typical_p": "1", "repeat_penalty": "1", "dry_multiplier": "0", "xtc_probability": "0", "mirostat": "0", "cache_prompt": "false", "ignore_eos": "false",
	},
}

// Protocol implements [target.Protocol].
type Protocol struct {
	name    string
	options Options
}

var _ target.Protocol = Protocol{}

// NewProtocol returns the protocol of a target.
func NewProtocol(t attest.Target) (Protocol, error) {
	p := Protocol{name: t.Protocol}
	if defaults[p.name] == nil {
		return p, fmt.Errorf("protocol %q is none of %s", t.Protocol, strings.Join(slices.Sorted(maps.Keys(defaults)), ", "))
	}
	if err := t.ReadOptions(&p.options); err != nil {
		return p, err
	}
	if p.options.Dialect == "" {
		p.options.Dialect = "openai"
	}
	if dialects[p.options.Dialect] == nil {
		return p, fmt.Errorf("options of protocol %s: dialect %q is none of %s", p.name, p.options.Dialect, strings.Join(slices.Sorted(maps.Keys(dialects)), ", "))
	}
	return p, nil
}

// parameters returns all that is sent for a question.
func (p Protocol) parameters(q target.Question) (map[string]json.RawMessage, error) {
	if q.Request == nil || q.Inputs != nil {
		return nil, fmt.Errorf("question %s has tensors, and %s asks with JSON", q.ID, p.name)
	}
	if err := attest.CheckJSON(q.Request); err != nil {
		return nil, fmt.Errorf("question %s: %w", q.ID, err)
	}
	var said map[string]json.RawMessage
	if err := json.Unmarshal(q.Request, &said); err != nil || said == nil {
		return nil, fmt.Errorf("question %s: the request is no JSON object (%v)", q.ID, err)
	}
	if _, ok := said["model"]; ok {
		return nil, fmt.Errorf("question %s names a model; which one is asked is the environment's", q.ID)
	}
	subject := map[string]string{NameChat: "messages", NameCompletions: "prompt", NameEmbeddings: "input"}[p.name]
	if _, ok := said[subject]; !ok {
		return nil, fmt.Errorf("question %s has no %q, which %s needs", q.ID, subject, p.name)
	}
	if prompt := bytes.TrimSpace(said["prompt"]); p.name == NameCompletions && len(prompt) > 1 && prompt[0] == '[' {
		if first := bytes.TrimSpace(prompt[1:])[0]; first == '"' || first == '[' {
			return nil, fmt.Errorf("question %s has several prompts; a case is one", q.ID)
		}
	}
	all := map[string]json.RawMessage{}
	fill := func(m map[string]string) {
		for k, v := range m {
			all[k] = json.RawMessage(v)
		}
	}
	fill(defaults[p.name])
	if p.name != NameEmbeddings {
		fill(dialects[p.options.Dialect])
	}
	// OpenAI renamed one; only one of the two may be sent.
	for _, m := range []map[string]json.RawMessage{p.options.Defaults, said} {
		if _, ok := m["max_completion_tokens"]; ok {
			delete(all, "max_tokens")
		}
		maps.Copy(all, m)
	}
	if _, ok := said["tools"]; ok {
		for k, v := range map[string]string{"tool_choice": `"auto"`, "parallel_tool_calls": "true"} {
			if _, ok := all[k]; !ok {
				all[k] = json.RawMessage(v)
			}
		}
	}
	if string(all["stream"]) == "true" {
		if _, ok := all["stream_options"]; !ok {
			all["stream_options"] = json.RawMessage(`{"include_usage":true}`)
		}
	}
	for k, v := range p.options.Defaults {
		if _, ok := said[k]; !ok && string(v) == "null" {
			delete(all, k)
		}
	}
	model, err := json.Marshal(q.Model)
	all["model"] = model
	return all, err
}

// Encode implements [target.Protocol]: an object whose members are in order.
// What is inside of them keeps its order: a chat template may show a tool's
// schema to the model as it was written.
func (p Protocol) Encode(q target.Question) ([]byte, error) {
	all, err := p.parameters(q)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteByte('{')
	for i, k := range slices.Sorted(maps.Keys(all)) {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(k)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		if err := json.Compact(&b, all[k]); err != nil {
			return nil, fmt.Errorf("question %s: %s: %w", q.ID, k, err)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// Join makes one question for embeddings of several that ask for one each: its
// answer has a row for each of them, in their order. It needs questions with one
// text as input, and otherwise the same parameters; else ok is false.
func Join(questions []target.Question) (joined target.Question, ok bool) {
	var rest []byte
	var inputs []json.RawMessage
	for _, q := range questions {
		var all map[string]json.RawMessage
		if json.Unmarshal(q.Request, &all) != nil || !bytes.HasPrefix(bytes.TrimSpace(all["input"]), []byte{'"'}) {
			return joined, false
		}
		inputs = append(inputs, all["input"])
		delete(all, "input")
		raw, err := json.Marshal(all) // in the order of its names
		if err != nil || rest != nil && !bytes.Equal(raw, rest) {
			return joined, false
		}
		rest = raw
	}
	var all map[string]json.RawMessage
	if json.Unmarshal(rest, &all) != nil {
		return joined, false
	}
	list, err := json.Marshal(inputs)
	if err != nil {
		return joined, false
	}
	all["input"] = list
	joined = questions[0]
	joined.ID = "batch"
	joined.Request, err = json.Marshal(all)
	return joined, err == nil
}

// OtherWay makes of a question the same one asked the other way: streamed, if
// request, which is what is sent for it, asks for a whole answer, and the other
// way round. sampled says that the answer is drawn at random, so that two of them
// may differ.
func OtherWay(q target.Question, request []byte) (other target.Question, sampled bool, err error) {
	var sent struct {
		Stream      bool    `json:"stream"`
		Temperature float64 `json:"temperature"`
	}
	if err := json.Unmarshal(request, &sent); err != nil {
		return q, false, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(q.Request, &all); err != nil {
		return q, false, err
	}
	all["stream"] = json.RawMessage(strconv.FormatBool(!sent.Stream))
	if sent.Stream {
		delete(all, "stream_options")
	}
	// What is inside of a member stays as it was written.
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(all); err != nil {
		return q, false, err
	}
	q.Request = bytes.TrimSpace(b.Bytes())
	return q, sent.Temperature > 0, nil
}
