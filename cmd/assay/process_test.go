package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	logs "github.com/assay-dev/assay/registry/tlog"
)

// A process is a server that runs as its users run it: the real program, on a
// real data folder.
type process struct {
	t    testing.TB
	dir  string // for what is not data
	data string
	addresses
	cmd  *exec.Cmd
	log  *bytes.Buffer
	done chan struct{} // closed once it has ended
}

// startProcess starts a server, under another program if wrap names one, and
// waits until it answers or has ended.
func startProcess(t testing.TB, data string, wrap []string, flags ...string) *process {
	t.Helper()
	program, err := exec.LookPath("assay")
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, dir: t.TempDir(), data: data, log: &bytes.Buffer{}, done: make(chan struct{})}
	ready := filepath.Join(p.dir, "ready.json")
	args := append([]string{program, "serve", "--addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--data", data, "--ready-file", ready, "--quiet"}, flags...)
	args = append(wrap[:len(wrap):len(wrap)], args...)
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // with what wraps it
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	t.Cleanup(p.kill)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if raw, err := os.ReadFile(ready); err == nil && json.Unmarshal(raw, &p.addresses) == nil {
			return p
		}
		select {
		case <-p.done:
			return p
		default:
		}
		if time.Now().After(deadline) {
			p.kill()
			t.Fatalf("the server does not start:\n%s", p.log)
		}
	}
}

// ready fails the test if the server has ended before it answered.
func (p *process) ready() *process {
	p.t.Helper()
	if p.HTTP == "" {
		p.t.Fatalf("the server ended:\n%s", p.log)
	}
	return p
}

// kill ends the server by SIGKILL.
func (p *process) kill() {
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	if p.PID != 0 {
		syscall.Kill(p.PID, syscall.SIGKILL)
	}
	<-p.done
}

// stop ends the server by SIGTERM.
func (p *process) stop() {
	p.t.Helper()
	syscall.Kill(p.PID, syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		p.kill()
		p.t.Fatalf("the server does not stop:\n%s", p.log)
	}
}

// fsck checks the data of a server that has ended.
func (p *process) fsck() {
	p.t.Helper()
	out, err := exec.Command("assay", "fsck", "--data", p.data).CombinedOutput()
	if err != nil {
		p.t.Errorf("fsck: %v\n%s", err, out)
	}
}

// A reply is what a server answered; err is of the connection.
type reply struct {
	status int
	header http.Header
	body   []byte
	err    error
}

func (r reply) String() string {
	return fmt.Sprintf("%d %.300s %v", r.status, r.body, r.err)
}

var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}, Timeout: time.Minute}

// ask sends one request to a server. headers come in pairs.
func ask(url, method, path string, body []byte, headers ...string) reply {
	if !strings.HasPrefix(path, "http") {
		path = url + path
	}
	req, err := http.NewRequest(method, path, bytes.NewReader(body))
	if err != nil {
		return reply{err: err}
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	r := reply{status: resp.StatusCode, header: resp.Header}
	r.body, r.err = io.ReadAll(resp.Body)
	return r
}

// checkpoint returns the state of the server's log as it signs it.
func (p *process) checkpoint() (logs.Tree, error) {
	var a struct{ Checkpoint, VerifierKey string }
	r := ask(p.HTTP, "GET", "/api/v1/log/checkpoint", nil)
	if r.status != http.StatusOK {
		return logs.Tree{}, fmt.Errorf("the checkpoint: %v", r)
	}
	if err := json.Unmarshal(r.body, &a); err != nil {
		return logs.Tree{}, err
	}
	return logs.OpenCheckpoint([]byte(a.Checkpoint), a.VerifierKey)
}

// extends checks from the tiles, as a witness does, that the log of today
// begins with one that was signed before.
func (p *process) extends(before logs.Tree) {
	p.t.Helper()
	now, err := p.checkpoint()
	if err != nil {
		p.t.Error(err)
		return
	}
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (list []tlog.Hash, _ error) {
		for _, i := range indexes {
			list = append(list, stored[i])
		}
		return list, nil
	})
	for n := int64(0); n < now.N; n += 256 {
		path := logs.TilePath{Level: 0, Index: n / 256, Width: int(min(256, now.N-n))}.String()
		r := ask(p.HTTP, "GET", "/log/"+path, nil)
		if r.status != http.StatusOK {
			p.t.Errorf("tile %s: %v", path, r)
			return
		}
		for i := 0; i+32 <= len(r.body); i += 32 {
			more, err := tlog.StoredHashesForRecordHash(n+int64(i/32), tlog.Hash(r.body[i:i+32]), reader)
			if err != nil {
				p.t.Error(err)
				return
			}
			stored = append(stored, more...)
		}
	}
	for _, t := range []logs.Tree{before, now} {
		if t.N > now.N {
			p.t.Errorf("the log had %d leaves and has %d", t.N, now.N)
			return
		}
		if t.N == 0 {
			continue
		}
		root, err := tlog.TreeHash(t.N, reader)
		if err != nil || root != t.Hash {
			p.t.Errorf("the log of %d leaves does not begin with the one of %s leaves that was signed (%v)", now.N, strconv.FormatInt(t.N, 10), err)
		}
	}
}
