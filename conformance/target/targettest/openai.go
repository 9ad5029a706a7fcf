package targettest

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// An OpenAI server answers chats, completions and embeddings as OpenAI's does,
// from a model without weights: it says the question's words in reverse, and
// calls a tool for "weather in CITY". Its tokens are words with the space in
// front. Asked with a temperature, it draws each word or one of four others in its
// place, from the seed of the request or, without one, anew. OpenAI's own Go client
// reads it (see the module openai/official).
type OpenAI struct {
	*httptest.Server

	// Threads is what the server declares of itself, as llama.cpp's example does; 0 is
	// to say nothing. It changes nothing.
	Threads int

	// Context is how many tokens a question may have; 0 is 1,000.
	Context int

	mu        sync.Mutex
	misbehave func(n int) string // guarded by mu, as all below; or nil
	requests  int
	drawn     map[string]int // how often a prompt was answered at random
}

// SetMisbehave sets what is asked before each answer, as that of Server does. The
// words are those of OpenAIFaults.
func (s *OpenAI) SetMisbehave(f func(n int) string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.misbehave = f
}

// OpenAIFaults are the words that a server may be told to misbehave by, in every answer.
var OpenAIFaults = []string{
	"http-500", "http-429", "hang", "close", "empty", "not-json", "truncated", "error-in-200", "wrong-model", "no-model", "cached", "duplicate-key", "usage-off",
	"trickle",
}

// OpenAIChoiceFaults are further words for answers with choices.
var OpenAIChoiceFaults = []string{
	"nan", "null-logprob", "no-logprobs", "no-top-logprobs", "silent-canary", "lost-token", "drop-choice", "extra-choice", "no-finish", "ignore-max-tokens", "ignore-stop", "ignore-stream",
}

// OpenAIWayFaults are further words for chats. A word after "stream-" is of streams
// alone, and one after "whole-" of answers that are whole, so that the two are not
// the same: any word of the lists above, and these.
var OpenAIWayFaults = []string{"other-call", "no-call", "usage-more", "finish-length", "refuses", "other-tokens"}

// OpenAIDefaultFaults are further words for chats: the server has a temperature of
// its own, and says nothing of it; it says which parameters it used
// ("settings"), and one of them is its own ("other-settings").
var OpenAIDefaultFaults = []string{"ignore-temperature", "settings", "other-settings"}

// OpenAIEmbeddingFaults are further words for embeddings.
var OpenAIEmbeddingFaults = []string{"coarse", "narrow", "long", "zero", "swapped"}

// OpenAIStreamFaults are further words for streams.
var OpenAIStreamFaults = []string{"error-in-stream", "no-done", "canary-in-stream", "other-id-in-stream", "no-usage", "after-done"}

// OpenAIDrawFaults are further words for answers that are drawn at random: at twice
// the temperature or at half of it, always with one seed whatever the request says,
// or with the seeds 0, 1, 2, … for each prompt, as every server that was started with
// --seed does.
var OpenAIDrawFaults = []string{"hot", "cold", "pinned-seed", "seeds-from-start"}

// NewOpenAI starts a server that behaves. Its model is "parrot"; answers give
// the full name "parrot-2026-03-01".
func NewOpenAI(t testing.TB) *OpenAI {
	s := &OpenAI{}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// Requests is the number of answers asked for.
func (s *OpenAI) Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

const (
	parrot     = "parrot"
	parrotFull = "parrot-2026-03-01"
)

type openAIRequest struct {
	Model    string `json:"model"`
	Messages []struct {
		Role    string `json:"role"`
		Content any    `json:"content"`
	} `json:"messages"`
	Prompt              any      `json:"prompt"`
	Input               any      `json:"input"`
	Temperature         *float64 `json:"temperature"`
	Seed                *int64   `json:"seed"`
	TopP                *float64 `json:"top_p"`
	N                   *int     `json:"n"`
	MaxTokens           *int     `json:"max_tokens"`
	MaxCompletionTokens *int     `json:"max_completion_tokens"`
	Stop                any      `json:"stop"`
	Stream              bool     `json:"stream"`
	StreamOptions       struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	Logprobs    any `json:"logprobs"`
	TopLogprobs int `json:"top_logprobs"`
	Tools       []struct {
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	} `json:"tools"`
	ToolChoice     any    `json:"tool_choice"`
	EncodingFormat string `json:"encoding_format"`
	Dimensions     int    `json:"dimensions"`
}

func openAIError(w http.ResponseWriter, status int, kind, param, format string, a ...any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"message": fmt.Sprintf(format, a...), "type": kind, "param": param, "code": nil}})
}

// ServeHTTP implements http.Handler.
func (s *OpenAI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/v1/models":
		w.Header().Set("Content-Type", "application/json")
		meta := ""
		if s.Threads > 0 {
			meta = fmt.Sprintf(`,"meta":{"n_threads":%d}`, s.Threads)
		}
		fmt.Fprintf(w, `{"object":"list","data":[{"id":%q,"object":"model","created":1772323200,"owned_by":"fake"%[3]s},{"id":%[2]q,"object":"model","created":1772323200,"owned_by":"fake"%[3]s}]}`, parrot, parrotFull, meta)
		return
	case "/v1/chat/completions", "/v1/completions", "/v1/embeddings":
	default:
		openAIError(w, 404, "invalid_request_error", "", "Unknown request URL: %s %s", r.Method, r.URL.Path)
		return
	}
	s.mu.Lock()
	s.requests++
	n := s.requests
	s.mu.Unlock()
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client went away
	}
	var q openAIRequest
	if err := json.Unmarshal(raw, &q); err != nil {
		openAIError(w, 400, "invalid_request_error", "", "We could not parse the JSON body of your request: %v", err)
		return
	}
	limit := s.Context
	if limit == 0 {
		limit = 1000
	}
	switch {
	case q.Model != parrot && q.Model != parrotFull:
		openAIError(w, 404, "invalid_request_error", "model", "The model `%s` does not exist", q.Model)
		return
	case q.Temperature != nil && (*q.Temperature < 0 || *q.Temperature > 2):
		openAIError(w, 400, "invalid_request_error", "temperature", "temperature is out of range")
		return
	case q.N != nil && *q.N < 1:
		openAIError(w, 400, "invalid_request_error", "n", "n is out of range")
		return
	}
	s.mu.Lock()
	misbehave := s.misbehave
	s.mu.Unlock()
	fault := ""
	if misbehave != nil {
		fault = misbehave(n)
	}
	if of, ok := strings.CutPrefix(fault, "stream-"); ok {
		fault = ""
		if q.Stream {
			fault = of
		}
	} else if of, ok := strings.CutPrefix(fault, "whole-"); ok {
		fault = ""
		if !q.Stream {
			fault = of
		}
	}
	a := &openAIAnswer{s: s, q: q, fault: fault, w: w, model: parrotFull, id: fmt.Sprintf("fake-%d", n)}
	switch fault {
	case "wrong-model":
		a.model = "parakeet"
	case "no-model":
		a.model = ""
	case "http-429":
		w.Header().Set("Retry-After", "1")
		openAIError(w, 429, "requests", "", "Rate limit reached for requests")
		return
	case "http-500":
		openAIError(w, 500, "server_error", "", "The server had an error while processing your request")
		return
	case "hang", "close":
		Misbehave(w, r, fault)
		return
	}
	var body []byte
	if r.URL.Path == "/v1/embeddings" {
		body = a.embeddings()
	} else {
		a.chat = r.URL.Path == "/v1/chat/completions"
		prompt := a.prompt()
		if len(prompt) > limit {
			if fault != "cut" {
				openAIError(w, 400, "invalid_request_error", "messages", "This model's maximum context length is %d tokens. However, your messages resulted in %d tokens", limit, len(prompt))
				return
			}
			prompt = prompt[len(prompt)-limit:] // the front is dropped, and nobody told
		}
		a.promptTokens = len(prompt)
		body = a.complete(prompt)
	}
	w.Header().Set("Openai-Version", "2020-10-01")
	switch fault {
	case "empty":
		body = nil
	case "not-json":
		body = []byte("<html>busy</html>")
	case "error-in-200":
		body = []byte(`{"error":{"message":"The server had an error while processing your request","type":"server_error"}}`)
	case "duplicate-key":
		body = []byte(strings.Replace(string(body), `"object"`, `"object":"x","object"`, 1))
	case "cached":
		w.Header().Set("X-Cache", "HIT from edge")
	case "truncated":
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		body = body[:len(body)/2]
	}
	if a.streaming() {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	} else {
		w.Header().Set("Content-Type", "application/json")
	}
	if !a.streaming() && fault != "trickle" {
		w.Write(body)
		return
	}
	// Pieces: an event, or with "trickle" a few bytes that respect no bounds.
	flusher := http.NewResponseController(w)
	for len(body) > 0 {
		n := len(body)
		if fault == "trickle" {
			n = min(n, 17)
		} else if i := strings.Index(string(body), "\n\n"); i >= 0 {
			n = i + 2
		}
		w.Write(body[:n])
		flusher.Flush()
		body = body[n:]
		time.Sleep(time.Millisecond)
	}
}

// An openAIAnswer is one being made.
type openAIAnswer struct {
	s            *OpenAI
	q            openAIRequest
	fault        string
	w            http.ResponseWriter
	chat         bool
	model, id    string
	promptTokens int
}

func (a *openAIAnswer) streaming() bool { return a.q.Stream && a.fault != "ignore-stream" }

var word = regexp.MustCompile(` ?[^ ]+| `)

// prompt returns the tokens of the question.
func (a *openAIAnswer) prompt() []string {
	text := fmt.Sprint(a.q.Prompt)
	if a.chat {
		text = ""
		for _, m := range a.q.Messages {
			text += fmt.Sprintf(" <%s> %v", m.Role, m.Content)
		}
	}
	return word.FindAllString(text, -1)
}

var weather = regexp.MustCompile(`weather in (\pL+)`)

func stops(v any) (list []string) {
	switch v := v.(type) {
	case string:
		list = []string{v}
	case []any:
		for _, s := range v {
			list = append(list, fmt.Sprint(s))
		}
	}
	return list
}

// complete computes the choices and writes them whole or as events.
func (a *openAIAnswer) complete(prompt []string) []byte {
	q := a.q
	limit := 16
	if q.MaxTokens != nil {
		limit = *q.MaxTokens
	} else if q.MaxCompletionTokens != nil {
		limit = *q.MaxCompletionTokens
	}
	last := prompt
	if i := slices.IndexFunc(prompt, func(t string) bool { return strings.HasSuffix(t, "<user>") }); a.chat && i >= 0 {
		last = prompt[i+1:]
	}
	tokens := slices.Clone(last)
	slices.Reverse(tokens)
	switch a.fault {
	case "silent-canary":
		tokens = append([]string{" well"}, tokens...)
	case "ignore-temperature": // what is drawn is another word each time
		tokens = append([]string{" " + a.id}, tokens...)
	}
	reason := "stop"
	text := strings.Join(last, "")
	var call map[string]any
	if m := weather.FindStringSubmatch(text); a.chat && m != nil && len(q.Tools) > 0 && q.ToolChoice != "none" {
		tokens, reason = nil, "tool_calls"
		city := m[1]
		if a.fault == "other-call" {
			city += "burg"
		}
		call = map[string]any{"id": "call_1", "type": "function", "function": map[string]any{"name": q.Tools[0].Function.Name, "arguments": `{"city": "` + city + `"}`}}
	}
	n := 1
	if q.N != nil {
		n = *q.N
	}
	switch a.fault {
	case "drop-choice":
		n--
	case "extra-choice":
		n++
	}
	type choice struct {
		tokens []string
		finish string
	}
	said := make([]choice, n)
	counted := 0
	for i, tokens := range a.draw(text, tokens, n) {
		finish := reason
		for _, s := range stops(q.Stop) {
			for i := range tokens {
				if strings.Contains(strings.Join(tokens[:i+1], ""), s) && a.fault != "ignore-stop" {
					tokens = tokens[:i] // the stop sequence is a word, or within one
					break
				}
			}
		}
		if a.fault == "ignore-max-tokens" {
			for len(tokens) <= limit {
				tokens = append(tokens, " more")
			}
		} else if len(tokens) > limit {
			tokens, finish = tokens[:limit], "length"
		}
		said[i] = choice{tokens, finish}
		counted += len(tokens)
	}
	if call != nil {
		counted = 5 * n
	}
	usage := map[string]any{"prompt_tokens": a.promptTokens, "completion_tokens": counted, "total_tokens": a.promptTokens + counted}
	switch a.fault {
	case "usage-off":
		usage["total_tokens"] = 1
	case "usage-more":
		usage = map[string]any{"prompt_tokens": a.promptTokens, "completion_tokens": counted + 1, "total_tokens": a.promptTokens + counted + 1}
	}
	refusal := any(nil)
	if a.fault == "refuses" {
		refusal = "I cannot say that."
	}
	if a.fault == "no-call" {
		call = nil // and it still ends for one
	}
	if !a.streaming() {
		choices := []any{}
		for i := range n {
			tokens := said[i].tokens
			c := map[string]any{"index": i, "finish_reason": a.finish(said[i].finish), "logprobs": a.logprobs(tokens)}
			if a.chat {
				m := map[string]any{"role": "assistant", "content": strings.Join(tokens, ""), "refusal": refusal}
				if call != nil {
					m["content"], m["tool_calls"] = nil, []any{call}
				}
				c["message"] = m
			} else {
				c["text"] = strings.Join(tokens, "")
			}
			choices = append(choices, c)
		}
		return a.document(map[string]any{"choices": choices, "usage": usage}, false)
	}
	var b []byte
	event := func(v map[string]any) {
		if _, ok := v["usage"]; !ok && q.StreamOptions.IncludeUsage {
			v["usage"] = nil
		}
		b = append(append(append(b, "data: "...), a.document(v, true)...), "\n\n"...)
	}
	piece := func(i int, delta map[string]any, token []string, finish any) map[string]any {
		c := map[string]any{"index": i, "finish_reason": finish, "logprobs": nil}
		if token != nil {
			c["logprobs"] = a.logprobs(token)
		}
		if a.chat {
			c["delta"] = delta
		} else {
			c["text"] = strings.Join(token, "")
		}
		return map[string]any{"choices": []any{c}}
	}
	for i := range n {
		if a.chat {
			event(piece(i, map[string]any{"role": "assistant", "content": ""}, nil, nil))
		}
		if refusal != nil {
			event(piece(i, map[string]any{"refusal": refusal}, nil, nil))
		}
		if call != nil {
			f := call["function"].(map[string]any)
			head := map[string]any{"index": 0, "id": call["id"], "type": "function", "function": map[string]any{"name": f["name"], "arguments": ""}}
			event(piece(i, map[string]any{"tool_calls": []any{head}}, nil, nil))
			arguments := f["arguments"].(string)
			for _, part := range []string{arguments[:5], arguments[5:]} {
				event(piece(i, map[string]any{"tool_calls": []any{map[string]any{"index": 0, "function": map[string]any{"arguments": part}}}}, nil, nil))
			}
		}
		for k, t := range said[i].tokens {
			if a.fault == "lost-token" && k == 1 {
				continue
			}
			switch {
			case k != 1:
			case a.fault == "error-in-stream":
				return append(b, `data: {"error":{"message":"CUDA out of memory","type":"server_error"}}`+"\n\n"...)
			case a.fault == "canary-in-stream":
				a.model = "parrot-2026-02-01"
			case a.fault == "other-id-in-stream":
				a.id = "fake-0"
			}
			event(piece(i, map[string]any{"content": t}, []string{t}, nil))
		}
		event(piece(i, map[string]any{}, nil, a.finish(said[i].finish)))
	}
	if q.StreamOptions.IncludeUsage && a.fault != "no-usage" {
		event(map[string]any{"choices": []any{}, "usage": usage})
	}
	if a.fault != "no-done" {
		b = append(b, "data: [DONE]\n\n"...)
	}
	if a.fault == "after-done" {
		event(piece(0, map[string]any{"content": "!"}, nil, nil))
	}
	return b
}

// draw returns the words of n choices: the model's own, or, with a temperature,
// others in their places, the likelier the lower their number. The logits are those
// that logprobs says.
func (a *openAIAnswer) draw(prompt string, tokens []string, n int) [][]string {
	all := make([][]string, n)
	temperature := 0.0
	const others = 4
	if a.q.Temperature != nil {
		temperature = *a.q.Temperature
	}
	seed := int64(-1)
	if a.q.Seed != nil {
		seed = *a.q.Seed
	}
	if temperature > 0 {
		a.s.mu.Lock()
		if a.s.drawn == nil {
			a.s.drawn = map[string]int{}
		}
		started := a.s.drawn[prompt]
		a.s.drawn[prompt]++
		a.s.mu.Unlock()
		switch {
		case a.fault == "hot":
			temperature *= 2
		case a.fault == "cold":
			temperature /= 2
		case a.fault == "pinned-seed":
			seed = 0
		case a.fault == "seeds-from-start":
			seed = int64(started)
		}
	}
	for i := range all {
		all[i] = slices.Clone(tokens)
		if temperature == 0 {
			continue
		}
		rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
		if seed >= 0 {
			h := fnv.New64a()
			fmt.Fprintf(h, "%s\x00%d", prompt, i)
			rng = rand.New(rand.NewPCG(uint64(seed), h.Sum64()))
		}
		for k, t := range tokens {
			at, total := rng.Float64(), 0.0
			for other := range 1 + others {
				total += math.Exp(-1.5 * float64(other) / temperature)
			}
			for other := range 1 + others {
				p := math.Exp(-1.5*float64(other)/temperature) / total
				if at < p {
					break
				}
				at -= p
				all[i][k] = fmt.Sprintf("%s%d", t, other+1)
			}
		}
	}
	return all
}

func (a *openAIAnswer) finish(reason string) any {
	switch a.fault {
	case "no-finish":
		return nil
	case "finish-length":
		return "length"
	}
	return reason
}

// document adds what every answer has.
func (a *openAIAnswer) document(v map[string]any, chunk bool) []byte {
	v["object"] = "text_completion"
	if a.chat {
		v["object"] = "chat.completion"
		if chunk {
			v["object"] = "chat.completion.chunk"
		}
	}
	v["id"], v["created"], v["system_fingerprint"] = a.id, 1772323200, "fp_fake"
	if a.model != "" {
		v["model"] = a.model
	}
	if strings.HasSuffix(a.fault, "settings") && !chunk {
		// As llama.cpp says it: what is a float to it has come through one.
		used := map[string]any{"temperature": a.q.Temperature, "top_p": a.q.TopP, "n_ctx": 4096}
		if a.q.TopP != nil {
			used["top_p"] = float64(float32(*a.q.TopP))
		}
		if a.fault == "other-settings" {
			used["temperature"] = 0.8
		}
		v["generation_settings"] = used
	}
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	text := string(raw)
	// encoding/json would not write these.
	if a.fault == "nan" {
		text = strings.ReplaceAll(text, "-0.015625", "NaN")
	}
	if a.fault == "null-logprob" {
		text = strings.ReplaceAll(text, "-0.015625", "null")
	}
	return []byte(text)
}

// logprobs are those of made-up probabilities that depend on the token alone.
func (a *openAIAnswer) logprobs(tokens []string) any {
	if a.q.Logprobs == nil || a.q.Logprobs == false || a.fault == "no-logprobs" {
		return nil
	}
	top := a.q.TopLogprobs
	if n, ok := a.q.Logprobs.(float64); ok {
		top = int(n)
	}
	if a.fault == "no-top-logprobs" {
		top = 0
	}
	const best = -0.015625
	content, texts, values, tops := []any{}, []string{}, []float64{}, []map[string]float64{}
	for _, t := range tokens {
		if a.fault == "other-tokens" {
			t = strings.ToUpper(t)
		}
		alternatives, m := []any{}, map[string]float64{}
		for i := range top {
			alt, v := t, best
			if i > 0 {
				alt, v = fmt.Sprintf("%s%d", t, i), best-float64(i)*1.5
			}
			alternatives = append(alternatives, map[string]any{"token": alt, "logprob": v, "bytes": ints(alt)})
			m[alt] = v
		}
		content = append(content, map[string]any{"token": t, "logprob": best, "bytes": ints(t), "top_logprobs": alternatives})
		texts, values, tops = append(texts, t), append(values, best), append(tops, m)
	}
	if a.chat {
		return map[string]any{"content": content, "refusal": nil}
	}
	return map[string]any{"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": []int{}}
}

func ints(s string) []int {
	out := []int{}
	for _, b := range []byte(s) {
		out = append(out, int(b))
	}
	return out
}

// embeddings makes a vector of each input from the counts of its letters.
func (a *openAIAnswer) embeddings() []byte {
	var inputs []string
	switch v := a.q.Input.(type) {
	case []any:
		for _, x := range v {
			inputs = append(inputs, fmt.Sprint(x))
		}
	default:
		inputs = []string{fmt.Sprint(v)}
	}
	width := 8
	if a.q.Dimensions > 0 && a.fault != "ignore-dimensions" {
		width = a.q.Dimensions
	}
	data := []any{}
	tokens := 0
	for i, s := range inputs {
		tokens += len(word.FindAllString(s, -1))
		v := make([]float32, width)
		norm := float64(0)
		for _, b := range []byte(s) {
			v[int(b)%width]++
		}
		for _, x := range v {
			norm += float64(x) * float64(x)
		}
		switch a.fault {
		case "narrow":
			v = v[:width-1]
		case "long":
			norm /= 4
		}
		var bits []byte
		for j := range v {
			v[j] = float32(float64(v[j]) / math.Sqrt(norm))
			switch a.fault {
			case "silent-canary":
				v[j] = -v[j]
			case "coarse": // as if it had been stored in few bits
				v[j] = float32(math.Round(float64(v[j])*4) / 4)
			case "zero":
				v[j] = 0
			}
			bits = binary.LittleEndian.AppendUint32(bits, math.Float32bits(v[j]))
		}
		var e any = v
		if (a.q.EncodingFormat == "base64") != (a.fault == "ignore-format") {
			e = base64.StdEncoding.EncodeToString(bits)
		}
		if a.fault == "nan" {
			e = []any{1e99}
		}
		data = append(data, map[string]any{"object": "embedding", "index": i, "embedding": e})
	}
	switch a.fault {
	case "swapped": // the rows of a batch under each other's numbers
		for i := range data {
			data[i].(map[string]any)["index"] = len(data) - 1 - i
		}
	case "drop-embedding":
		data = data[1:]
	case "twice":
		data = append(data, data[0])
	}
	total := tokens
	if a.fault == "usage-off" {
		total++
	}
	out := a.document(map[string]any{"data": data, "usage": map[string]any{"prompt_tokens": tokens, "total_tokens": total}}, false)
	return []byte(strings.Replace(string(out), `"object":"text_completion"`, `"object":"list"`, 1))
}
