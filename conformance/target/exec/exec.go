// Package exec asks a local program, over JSON lines: one question a line on
// its standard input, one answer a line on its standard output. It is for
// what has no server: a device on a desk, a notebook, a binding in another
// language.
//
// A question of tensors is an inference request of the Open Inference
// Protocol, as JSON; one of free JSON is {"id":…, "request":{…}}. Both name
// the model. The answer is an inference response, or {"id":…, "model_name":…,
// "model_version":…, "value":…}, or {"id":…, "error":"…"}. The line
// {"describe":"MODEL"} asks for the model's metadata.
package exec

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/oip"
	"github.com/assay-dev/assay/conformance/target/wire"
	"github.com/assay-dev/assay/verify/attest"
)

// Name is the protocol's name in environment documents.
const Name = "exec-jsonl"

// Allow is the environment variable with the programs that may be started,
// separated as in PATH. Environment documents come from a registry: without
// it whoever may write one could run what they like here.
const Allow = "ASSAY_EXEC"

// Protocol implements [target.Protocol].
type Protocol struct{}

var _ target.Protocol = Protocol{}

// Encode implements [target.Protocol]. The line's end is not part of the
// bytes.
func (Protocol) Encode(q target.Question) ([]byte, error) {
	name, err := json.Marshal(q.Model)
	if err != nil {
		return nil, err
	}
	if q.Request == nil {
		// The program has no path in which the model could be named.
		raw, err := oip.Protocol{}.Encode(q)
		if err != nil {
			return nil, err
		}
		return append(fmt.Appendf(nil, `{"model_name":%s,`, name), raw[1:]...), nil
	}
	if q.Inputs != nil {
		return nil, fmt.Errorf("question %s has tensors and JSON", q.ID)
	}
	if err := attest.CheckJSON(q.Request); err != nil {
		return nil, fmt.Errorf("question %s: %w", q.ID, err)
	}
	id, err := json.Marshal(q.ID)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"model_name":%s,"id":%s,"request":`, name, id)
	if err := json.Compact(&b, q.Request); err != nil {
		return nil, fmt.Errorf("question %s: %w", q.ID, err)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// Decode implements [target.Protocol].
func (Protocol) Decode(q target.Question, r target.Response) (*target.Answer, error) {
	if q.Request == nil {
		return oip.Protocol{}.Decode(q, r)
	}
	if err := wire.Check(r); err != nil {
		return nil, err
	}
	if err := attest.CheckJSON(r.Body); err != nil {
		if bytes.Contains(r.Body, []byte("NaN")) || bytes.Contains(r.Body, []byte("Infinity")) {
			return nil, target.Wrongf("not-finite", "the answer has numbers that are not finite: %.100q", r.Body)
		}
		return nil, target.Wrongf("malformed", "%v: %.100q", err, r.Body)
	}
	var a struct {
		ID      string          `json:"id"`
		Model   string          `json:"model_name"`
		Version string          `json:"model_version"`
		Error   json.RawMessage `json:"error"`
		Value   json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(r.Body, &a); err != nil {
		return nil, target.Wrongf("malformed", "%v", err)
	}
	switch {
	case a.Error != nil:
		return nil, target.Wrongf("error-in-200", "the answer is an error: %.200s", a.Error)
	case a.ID != q.ID:
		return nil, target.Wrongf("wrong-id", "the answer is to %q", a.ID)
	case a.Model != q.Model:
		return nil, target.Wrongf("wrong-model", "model %q answered", a.Model)
	case q.Version != "" && a.Version != q.Version:
		return nil, target.Wrongf("wrong-version", "version %q answered, not %q", a.Version, q.Version)
	case a.Value == nil || string(a.Value) == "null":
		return nil, target.Wrongf("missing-output", "the answer has no value")
	}
	value, err := wire.Canonical(a.Value)
	if err != nil {
		return nil, target.Wrongf("malformed", "%v", err)
	}
	return &target.Answer{Model: a.Model, Version: a.Version, Value: value}, nil
}

// Options are those of a target document.
type Options struct {
	Args []string `json:"args,omitempty"`
}

// Target implements [target.Target]. The program is started with the first
// question, asked one question at a time, and started again after it ended or
// was too late: what it would still have said is nobody's answer.
type Target struct {
	Protocol
	model string
	path  string
	args  []string

	turn chan struct{} // holds one value while nobody asks

	// Of the turn's holder.
	program *program
}

var _ target.Target = (*Target)(nil)

// New returns the target that an environment document names: its URL is
// exec:///PATH/TO/PROGRAM, and the program is among those in [Allow].
func New(t attest.Target) (*Target, error) {
	if t.Protocol != Name {
		return nil, fmt.Errorf("protocol %q is not %s", t.Protocol, Name)
	}
	u, err := url.Parse(t.URL)
	if err != nil || u.Scheme != "exec" || u.Host != "" || !filepath.IsAbs(u.Path) || u.RawQuery != "" {
		return nil, fmt.Errorf("target url %q: write exec:///PATH/TO/PROGRAM", t.URL)
	}
	if !slices.Contains(filepath.SplitList(os.Getenv(Allow)), u.Path) {
		return nil, fmt.Errorf("%s may not be started on this machine; if you trust it, set %s=%s", u.Path, Allow, u.Path)
	}
	var o Options
	if err := t.ReadOptions(&o); err != nil {
		return nil, err
	}
	tg := &Target{model: t.Model, path: u.Path, args: o.Args, turn: make(chan struct{}, 1)}
	tg.turn <- struct{}{}
	return tg, nil
}

// A program is one that runs.
type program struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	lines  chan line // closed when the program says no more
	said   *tail     // on standard error
	killed sync.Once
}

type line struct {
	text []byte
	err  error
}

func (t *Target) start() (*program, error) {
	p := &program{cmd: exec.Command(t.path, t.args...), lines: make(chan line), said: &tail{}}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = p.said
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.lines)
		r := bufio.NewReaderSize(out, 64<<10)
		for {
			text, err := readLine(r)
			if err == nil || len(text) > 0 {
				p.lines <- line{text, err}
			}
			if err != nil {
				return
			}
		}
	}()
	return p, nil
}

// readLine reads up to the end of a line, which it drops.
func readLine(r *bufio.Reader) (text []byte, err error) {
	for {
		part, err := r.ReadSlice('\n')
		text = append(text, part...)
		switch {
		case err == nil:
			return bytes.TrimSuffix(text[:len(text)-1], []byte("\r")), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return text, err
		case len(text) > wire.MaxResponse:
			return text[:wire.MaxResponse], errTooLarge
		}
	}
}

var errTooLarge = fmt.Errorf("the answer has more than %d bytes", wire.MaxResponse)

// stop kills the program and all that it started.
func (p *program) stop() {
	p.killed.Do(func() {
		p.in.Close()
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		for range p.lines { // whatever it still says
		}
		p.cmd.Wait()
	})
}

// Close ends the program.
func (t *Target) Close() error {
	<-t.turn
	if t.program != nil {
		t.program.stop()
		t.program = nil
	}
	t.turn <- struct{}{}
	return nil
}

// Send implements [target.Target]. An answer has status 200: a program gives
// none.
func (t *Target) Send(ctx context.Context, request []byte) target.Exchange {
	x := target.Exchange{Sent: time.Now().UTC()}
	fail := func(class, format string, a ...any) target.Exchange {
		x.Received = time.Now().UTC()
		x.Failure = &target.Failure{Class: class, Message: fmt.Sprintf(format, a...)}
		return x
	}
	select {
	case <-t.turn:
	case <-ctx.Done():
		return fail("timeout", "waiting for the question before: %v", ctx.Err())
	}
	defer func() { t.turn <- struct{}{} }()
	if t.program == nil {
		p, err := t.start()
		if err != nil {
			return fail("connection", "starting the program: %v", err)
		}
		t.program = p
	}
	p := t.program
	dead := func(class, format string, a ...any) target.Exchange {
		p.stop()
		t.program = nil
		message := fmt.Sprintf(format, a...)
		if said := p.said.String(); said != "" {
			message += "; it said: " + said
		}
		return fail(class, "%s", message)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := p.in.Write(append(bytes.Clone(request), '\n'))
		wrote <- err
	}()
	var answer line
	ok := false
	select {
	case answer, ok = <-p.lines:
	case <-ctx.Done():
		return dead("timeout", "%v", ctx.Err())
	}
	switch {
	case !ok:
		p.stop()
		return dead("connection", "the program ended: %v", p.cmd.ProcessState)
	case errors.Is(answer.err, errTooLarge):
		return dead("too-large", "%v", answer.err)
	case answer.err != nil:
		x.Body = answer.text
		return dead("truncated", "the program ended within a line")
	}
	select {
	case err := <-wrote:
		if err != nil {
			return dead("connection", "%v", err)
		}
	case <-ctx.Done():
		return dead("timeout", "it answered before it had read the question, and does not read on")
	}
	if len(answer.text) == 0 {
		return dead("truncated", "an empty line")
	}
	x.Received, x.Status, x.Body = time.Now().UTC(), http.StatusOK, answer.text
	return x
}

// Describe implements [target.Target].
func (t *Target) Describe(ctx context.Context) (target.Description, error) {
	request, err := json.Marshal(map[string]string{"describe": t.model})
	if err != nil {
		return target.Description{}, err
	}
	x := t.Send(ctx, request)
	if x.Failure != nil {
		return target.Description{}, x.Failure
	}
	type spec struct {
		Name     string  `json:"name"`
		Datatype string  `json:"datatype"`
		Shape    []int64 `json:"shape"`
	}
	var m struct {
		Error      json.RawMessage   `json:"error"`
		Name       string            `json:"name"`
		Server     string            `json:"server"`
		Versions   []string          `json:"versions"`
		Platform   string            `json:"platform"`
		Inputs     []spec            `json:"inputs"`
		Outputs    []spec            `json:"outputs"`
		Parameters map[string]string `json:"parameters"`
	}
	if err := json.Unmarshal(x.Body, &m); err != nil {
		return target.Description{}, fmt.Errorf("the program's description: %w: %.200q", err, x.Body)
	}
	if m.Error != nil || m.Name != t.model {
		return target.Description{}, fmt.Errorf("the program does not have model %s: %.200s", t.model, x.Body)
	}
	d := target.Description{Server: m.Server, Model: m.Name, Versions: m.Versions, Platform: m.Platform, Parameters: m.Parameters}
	if d.Server == "" {
		d.Server = filepath.Base(t.path)
	}
	for _, s := range m.Inputs {
		d.Inputs = append(d.Inputs, target.Spec(s))
	}
	for _, s := range m.Outputs {
		d.Outputs = append(d.Outputs, target.Spec(s))
	}
	return d, nil
}

// A tail keeps the end of what was written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte // guarded by mu
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > 500 {
		t.buf = append([]byte{}, t.buf[len(t.buf)-500:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf))
}
