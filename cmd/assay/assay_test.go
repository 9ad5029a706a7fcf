package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/store/badger"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/verifytest"
)

// The stories in testdata run the real program, the real clients (oras, crane
// and cosign, built by 'make tools') and the example's model server.
func TestMain(m *testing.M) {
	// Stories wait for servers and syncs more than they compute.
	flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
	testscript.Main(m, map[string]func(){"assay": main})
}

// toolsDir is where 'make tools' builds.
func toolsDir() string {
	if dir := os.Getenv("ASSAY_TOOLS"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "assay", "tools")
}

// modelServer is the example's server, built once.
var modelServer = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "assay-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "gomlx-oip")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Dir = filepath.Join("..", "..", "examples", "environments", "gomlx")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("building the example's model server: %w\n%s", err, out)
	}
	return path, err
})

func TestStories(t *testing.T) {
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("MODELS", filepath.Join(examples, "models"))
			env.Setenv("COSIGN_PASSWORD", "")
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("IP", address())
			env.Setenv("PATH", env.Getenv("PATH")+":"+toolsDir())
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if name, ok := strings.CutPrefix(cond, "debian:"); ok {
				_, err := exec.LookPath(name)
				if err != nil && os.Getenv("CI") != "" {
					return false, fmt.Errorf("%s is not installed: run 'make deps'", name)
				}
				return err == nil, nil
			}
			name, ok := strings.CutPrefix(cond, "tool:")
			if !ok {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			if _, err := os.Stat(filepath.Join(toolsDir(), name)); err == nil {
				return true, nil
			}
			if os.Getenv("CI") != "" {
				return false, fmt.Errorf("%s is not built: run 'make tools'", name)
			}
			return false, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve": serve, "halt": halt, "environment": environment, "status": exits, "state": state, "setenv": setFromFile, "flip": flip,
			"certificate": certificate, "served": served, "schema": schema, "authorities": authorities, "issue": issue, "yesterday": yesterday,
			"wire": throughWire, "killed": killed, "broken-off": brokenOff, "random": random, "pieces": pieces, "sessions": sessions,
			"openai": talk, "stop-openai": silence, "openai-fault": talkWrong, "questions": questions, "inputs": inputs,
		},
	})
}

// start runs a program in the background until the end of the story.
func start(ts *testscript.TestScript, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = ts.Getenv("WORK")
	log, err := os.Create(ts.MkAbs(filepath.Base(name) + fmt.Sprint(time.Now().UnixNano()) + ".log"))
	ts.Check(err)
	cmd.Stdout, cmd.Stderr = log, log
	ts.Check(cmd.Start())
	ts.Defer(func() {
		cmd.Process.Kill()
		cmd.Wait()
		log.Close()
	})
	return cmd
}

func await(ts *testscript.TestScript, file string) string {
	for range 300 {
		if raw, err := os.ReadFile(ts.MkAbs(file)); err == nil && len(raw) > 0 {
			return strings.TrimSpace(string(raw))
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("%s was not written", file)
	return ""
}

var servers sync.Map // of *exec.Cmd by work directory

// serve starts a server on the data in ./data and sets ASSAY_SERVER and HOST.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	os.Remove(ts.MkAbs("ready.json"))
	program, err := exec.LookPath("assay")
	ts.Check(err)
	cmd := start(ts, program, append([]string{"serve", "--addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--data", "data", "--reserve", "1048576", "--ready-file", "ready.json"}, args...)...)
	servers.Store(ts.Getenv("WORK"), cmd)
	var a addresses
	ts.Check(json.Unmarshal([]byte(await(ts, "ready.json")), &a))
	ts.Setenv("ASSAY_SERVER", a.HTTP)
	_, host, _ := strings.Cut(a.HTTP, "://")
	ts.Setenv("HOST", host)
}

// halt ends the server: by SIGTERM, or as "halt kill" by SIGKILL. (It is not called
// stop, because that word ends a story: names of testscript go first.)
func halt(ts *testscript.TestScript, neg bool, args []string) {
	v, ok := servers.LoadAndDelete(ts.Getenv("WORK"))
	if !ok {
		ts.Fatalf("no server is running")
	}
	cmd := v.(*exec.Cmd)
	if slices.Contains(args, "kill") {
		ts.Check(cmd.Process.Kill())
	} else {
		ts.Check(cmd.Process.Signal(syscall.SIGTERM))
	}
	cmd.Wait()
}

// environment NAME MODEL [FLAGS...] starts the model server and sets the
// variable NAME to its address.
func environment(ts *testscript.TestScript, neg bool, args []string) {
	program, err := modelServer()
	ts.Check(err)
	file, grpcFile := args[0]+".port", args[0]+".grpc-port"
	os.Remove(ts.MkAbs(file))
	start(ts, program, append([]string{"--model", filepath.Join(ts.Getenv("MODELS"), args[1]), "--name", "credit", "--version", "1.4.0", "--threads", "1",
		"--grpc-addr", "127.0.0.1:0", "--grpc-port-file", ts.MkAbs(grpcFile), "--port-file", ts.MkAbs(file)}, args[2:]...)...)
	// The file of REST is written last.
	ts.Setenv(args[0], "http://"+await(ts, file))
	ts.Setenv("GOMLX", program)
	ts.Setenv(args[0]+"_GRPC", "grpc://"+await(ts, grpcFile))
}

// exits is status CODE COMMAND...: it runs a command that must end with that status.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	var want int
	fmt.Sscan(args[0], &want)
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("%v ended with status %d, want %d", args[1:], got, want)
	}
}

// state FILE writes what the server holds: the signed log and all blobs.
func state(ts *testscript.TestScript, neg bool, args []string) {
	var b strings.Builder
	ts.Check(ts.Exec("assay", "log", "checkpoint"))
	b.WriteString(ts.ReadFile("stdout"))
	ts.Check(filepath.WalkDir(ts.MkAbs("data/blobs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			fmt.Fprintln(&b, filepath.Base(path))
		}
		return err
	}))
	// The signature is over the same text, but may come in other bytes.
	text := regexp.MustCompile(`(?m)^— .*$`).ReplaceAllString(b.String(), "")
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o644))
}

// setenv NAME PATTERN sets a variable to what a regular expression with one
// group finds in the last standard output.
func setFromFile(ts *testscript.TestScript, neg bool, args []string) {
	m := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) != 2 {
		ts.Fatalf("%q is not in the last output", args[1])
	}
	ts.Setenv(args[0], m[1])
}

// flip GLOB changes one byte in the middle of the largest file that matches.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	files, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	var name string
	var data []byte
	for _, f := range files {
		raw, err := os.ReadFile(f)
		ts.Check(err)
		if len(raw) > len(data) {
			name, data = f, raw
		}
	}
	if name == "" {
		ts.Fatalf("nothing matches %s", args[0])
	}
	data[len(data)/2] ^= 1
	ts.Check(os.Chmod(name, 0o600))
	ts.Check(os.WriteFile(name, data, 0o600))
	ts.Check(os.Chmod(name, 0o400))
}

// schema FOLDER makes the data a newer program's.
func schema(ts *testscript.TestScript, neg bool, args []string) {
	db, err := badger.Open(ts.MkAbs(filepath.Join(args[0], "db")), badger.Options{})
	ts.Check(err)
	defer db.Close()
	ts.Check(db.Update(context.Background(), func(r store.Reader) (b store.Batch, err error) {
		for row, err := range r.Scan(store.Prefix([]byte("schema"))) {
			if err != nil {
				return b, err
			}
			b.Set(bytes.Clone(row.Key), []byte("99"))
		}
		if b.Len() != 1 {
			err = fmt.Errorf("%d rows tell the schema version", b.Len())
		}
		return b, err
	}))
}

// address is one of this machine's that is not loopback, if it has one.
func address() string {
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			return n.IP.String()
		}
	}
	return "127.0.0.1"
}

// certificate NAME writes tls.crt and tls.key, for the addresses that stories
// use, by an authority whose certificate is ca.crt and stays the same.
func certificate(ts *testscript.TestScript, neg bool, args []string) {
	write := func(name, kind string, der []byte) {
		ts.Check(os.WriteFile(ts.MkAbs(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	seed := sha256.Sum256([]byte(ts.Getenv("WORK")))
	signer := ed25519.NewKeyFromSeed(seed[:])
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, signer.Public(), signer)
	ts.Check(err)
	write("ca.crt", "CERTIFICATE", der)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: args[0]}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP(ts.Getenv("IP")), net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if der, err = x509.CreateCertificate(rand.Reader, leaf, authority, key.Public(), signer); err == nil {
		write("tls.crt", "CERTIFICATE", der)
		der, err = x509.MarshalPKCS8PrivateKey(key)
	}
	ts.Check(err)
	write("tls.key", "PRIVATE KEY", der)
}

// authorities starts a timestamp authority, a Fulcio and a Rekor on this
// machine: the variables TSA, FULCIO and REKOR are their addresses; tsa.pem and
// tsa.json are what a trust file and cosign name the first by, fulcio.json is a
// trusted root of the first two, and sigstore.json of all; the Fulcio's
// certificates are in a certificate transparency log that both name. token.jwt
// is an identity token for ci@acme.example.
func authorities(ts *testscript.TestScript, neg bool, args []string) {
	t := storyT{ts: ts}
	now := time.Now()
	tsa := verifytest.NewTSA(t, time.Time{}, now.Add(-time.Hour), now.Add(time.Hour))
	ca := verifytest.NewCA(t, now.Add(-time.Hour), now.Add(time.Hour))
	ca.CT = verifytest.NewCT(t)
	rekor := verifytest.NewRekor(t, time.Time{})
	for name, h := range map[string]http.Handler{"TSA": tsa, "FULCIO": ca.Fulcio(t, "ci@acme.example", "https://issuer.example"), "REKOR": rekor} {
		s := httptest.NewServer(h)
		ts.Defer(s.Close)
		ts.Setenv(name, s.URL)
	}
	for name, content := range map[string]string{
		"tsa.pem": tsa.PEM(), "tsa.json": tsa.TrustedRoot(t), "fulcio.json": ca.TrustedRoot(t, tsa), "sigstore.json": ca.TrustedRoot(t, tsa, rekor),
		"token.jwt": verifytest.IdentityToken("ci@acme.example", "https://issuer.example"),
	} {
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(content), 0o600))
	}
}

// issue PUBLICKEY SAN NAME makes a private authority that certifies a key:
// NAME.crt is the certificate, NAME.chain the authority's, and NAME.root its
// root alone, as a trust file names it.
func issue(ts *testscript.TestScript, neg bool, args []string) {
	t := storyT{ts: ts}
	now := time.Now()
	ca := verifytest.NewCA(t, now.Add(-time.Hour), now.Add(time.Hour))
	block, _ := pem.Decode([]byte(ts.ReadFile(args[0])))
	if block == nil {
		ts.Fatalf("%s is no key", args[0])
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	ts.Check(err)
	const end = "-----END CERTIFICATE-----\n"
	leaf, intermediate, ok := strings.Cut(ca.Certify(t, public, args[1], now.Add(-time.Minute), now.Add(time.Hour)), end)
	if !ok {
		ts.Fatalf("the authority issued nothing")
	}
	for suffix, content := range map[string]string{".crt": leaf + end, ".chain": intermediate + ca.Root(), ".root": ca.Root()} {
		ts.Check(os.WriteFile(ts.MkAbs(args[2]+suffix), []byte(content), 0o600))
	}
}

// yesterday LIST OUT makes the status list that the server would have signed a
// day before LIST, with the server's own key.
func yesterday(ts *testscript.TestScript, neg bool, args []string) {
	var env dsse.Envelope
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &env))
	payload, err := env.DecodeB64Payload()
	ts.Check(err)
	l, err := attest.ParseStatusList(payload)
	ts.Check(err)
	l.Validity.NotBefore, l.Validity.NotAfter = l.Validity.NotBefore.Add(-24*time.Hour), l.Validity.NotAfter.Add(-24*time.Hour)
	k, err := verify.LoadKey([]byte(ts.ReadFile("data/identity/status.key")), nil)
	ts.Check(err)
	raw, err := verify.SignStatusList(k, l)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), raw, 0o600))
}

// storyT is a story as a testing.TB, for helpers that want one to end the test
// by.
type storyT struct {
	testing.TB
	ts *testscript.TestScript
}

func (t storyT) Helper()           {}
func (t storyT) Cleanup(f func())  { t.ts.Defer(f) }
func (t storyT) Fatal(args ...any) { t.ts.Fatalf("%s", fmt.Sprint(args...)) }

// served NAME checks which certificate the server shows, on both of its ports.
func served(ts *testscript.TestScript, neg bool, args []string) {
	var a addresses
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("ready.json")), &a))
	for _, addr := range []string{strings.TrimPrefix(a.HTTP, "https://"), a.GRPC} {
		conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		ts.Check(err)
		if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != args[0] {
			ts.Fatalf("%s shows certificate %q, want %q", addr, got, args[0])
		}
		conn.Close()
	}
}

// Every command says what it is for, and shows an example.
func TestHelp(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() == "completion" || c.Name() == "help" {
			return
		}
		if c.Short == "" || c.Long == "" {
			t.Errorf("%s: it has no help", c.CommandPath())
		}
		if c.HasParent() && !c.HasSubCommands() && !strings.Contains(c.Example, c.CommandPath()) {
			t.Errorf("%s: its help has no example of itself", c.CommandPath())
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s: no description", c.CommandPath(), f.Name)
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand(&globals{}))
}

// The command line wins over the environment, and that over the file.
func TestFlagsFromEnvironmentAndFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "assay.yaml")
	call := func(env map[string]string, yaml string, args ...string) (int, string, string) {
		t.Helper()
		for k, v := range env {
			t.Setenv(k, v)
		}
		if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		code := run(t.Context(), append(args, "--config", file), strings.NewReader(""), &out, &errOut)
		return code, out.String(), errOut.String()
	}
	if code, out, _ := call(nil, "output: json", "version"); code != 0 || !strings.HasPrefix(out, "{") {
		t.Errorf("output from a file: %d %s", code, out)
	}
	if code, out, _ := call(nil, "output: json", "version", "-o", "text"); code != 0 || strings.HasPrefix(out, "{") {
		t.Errorf("the command line does not win over the file: %d %s", code, out)
	}
	if code, _, errOut := call(nil, "outptu: json", "version"); code != exitUsage || !strings.Contains(errOut, "outptu") {
		t.Errorf("a misspelt key: %d %s", code, errOut)
	}
	if code, out, _ := call(map[string]string{"ASSAY_OUTPUT": "json"}, "", "version"); code != 0 || !strings.HasPrefix(out, "{") {
		t.Errorf("output from the environment: %d %s", code, out)
	}
	if code, _, errOut := call(map[string]string{"ASSAY_OUTPUT": "xml"}, "", "version"); code != exitUsage || !strings.Contains(errOut, "xml") {
		t.Errorf("a bad value in the environment: %d %s", code, errOut)
	}
}

// Verbs that are clients stay clients: only the files named here may know the
// registry from inside.
func TestArrows(t *testing.T) {
	allowed := map[string]bool{
		"serve.go": true, "security.go": true, "metrics.go": true, // the server
		"fsck.go": true, "restore.go": true, // work on the data of a stopped one
		"log.go":    true, // log verify reads leaves offline
		"access.go": true, // hashes passwords as the server checks them
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(raw, []byte(`"github.com/assay-dev/assay/registry`)) && !allowed[f] && !strings.HasSuffix(f, "_test.go") {
			t.Errorf("%s imports the registry: commands speak OCI and REST", f)
		}
	}
}
