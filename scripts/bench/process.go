package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A process is a registry server under measurement.
type process struct {
	name string
	host string // HOST:PORT
	data string
	pid  int
	cmd  *exec.Cmd
	done chan struct{}
	log  bytes.Buffer
}

// startAssay starts assay on a data folder and waits until it answers.
func (b *bench) startAssay(data string, flags ...string) (*process, error) {
	p := &process{name: "assay", data: data}
	ready := data + ".ready"
	os.Remove(ready)
	args := append([]string{"serve", "--quiet", "--log-level", "warn", "--addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--data", data, "--ready-file", ready}, flags...)
	if err := p.start(exec.Command(b.assay, args...)); err != nil {
		return nil, err
	}
	for {
		var a struct{ HTTP string }
		if raw, err := os.ReadFile(ready); err == nil && json.Unmarshal(raw, &a) == nil {
			p.host = strings.TrimPrefix(a.HTTP, "http://")
			return p, nil
		}
		if err := p.wait(b); err != nil {
			return nil, err
		}
	}
}

// startOther starts distribution's registry, as its own example configures it,
// without its log.
func (b *bench) startOther(data string) (*process, error) {
	p := &process{name: "distribution", data: data}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.host = l.Addr().String()
	l.Close()
	if err := os.MkdirAll(data, 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(data, "config.yml")
	text := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %s}
  cache: {blobdescriptor: inmemory}
http: {addr: %s}
`, filepath.Join(data, "registry"), p.host)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command(b.other, "serve", config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := p.start(cmd); err != nil {
		return nil, err
	}
	for {
		if resp, err := http.Get("http://" + p.host + "/v2/"); err == nil {
			resp.Body.Close()
			return p, nil
		}
		if err := p.wait(b); err != nil {
			return nil, err
		}
	}
}

func (p *process) start(cmd *exec.Cmd) error {
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	if err := cmd.Start(); err != nil {
		return err
	}
	p.cmd, p.pid, p.done = cmd, cmd.Process.Pid, make(chan struct{})
	go func() { cmd.Wait(); close(p.done) }()
	return nil
}

// wait a moment for a server that does not answer yet.
func (p *process) wait(b *bench) error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended:\n%s", p.name, p.log.Bytes())
	case <-b.ctx.Done():
		p.cmd.Process.Kill()
		return b.ctx.Err()
	case <-time.After(2 * time.Millisecond):
		return nil
	}
}

// stop ends the server and keeps its data.
func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
	os.Remove(p.data + ".ready")
}

// discard ends the server and removes its data.
func (p *process) discard() {
	p.stop()
	os.RemoveAll(p.data)
}

// cpu is the processor time that the server has used, user and system.
func (p *process) cpu() (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything; fields count from after it.
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is not what it was", p.pid)
	}
	user, e1 := strconv.ParseInt(fields[11], 10, 64)
	system, e2 := strconv.ParseInt(fields[12], 10, 64)
	const tick = time.Second / 100 // USER_HZ, the same on every Linux that Go runs on
	return time.Duration(user+system) * tick, errors.Join(e1, e2)
}

// anonymous is the server's anonymous memory now, in bytes: what it holds for
// itself, without mapped files.
func (p *process) anonymous() (int64, error) { return p.status("RssAnon:") }

func (p *process) status(field string) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), field); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no %s", p.pid, field)
}

// watch samples the server's anonymous memory until stop is called, which
// returns the largest sample.
func (p *process) watch() (stop func() int64) {
	end, result := make(chan struct{}), make(chan int64)
	go func() {
		var most int64
		for {
			if n, err := p.anonymous(); err == nil {
				most = max(most, n)
			}
			select {
			case <-end:
				result <- most
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return func() int64 { close(end); return <-result }
}
