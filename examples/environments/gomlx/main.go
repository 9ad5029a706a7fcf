// Gomlx-oip serves an ONNX model over the Open Inference Protocol v2 (REST with
// tensors as JSON or bytes, and gRPC), computed in pure Go. It is one of the example's deployment environments, and
// can be made wrong on purpose: see the flags.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		log.Fatal("gomlx-oip: ", err)
	}
}

func run(args []string) error {
	f := flag.NewFlagSet("gomlx-oip", flag.ContinueOnError)
	addr := f.String("addr", "127.0.0.1:0", "where to listen")
	dir := f.String("model", "", "the folder with model.onnx and preprocess.json")
	portFile := f.String("port-file", "", "write host:port to this file once ready")
	grpcAddr := f.String("grpc-addr", "", "where to listen for gRPC; empty: nowhere")
	grpcPortFile := f.String("grpc-port-file", "", "write host:port of gRPC to this file once ready")
	stdio := f.Bool("stdio", false, "serve nobody on the network: read questions from standard input and write answers to standard output, a line each")
	threads := f.Int("threads", 0, "how many threads the backend may use; 0 is its default")
	int8 := f.Bool("int8", false, "round every weight to int8")
	canary := f.String("canary", "", "a folder with another version of the model …")
	o := options{}
	f.Float64Var(&o.canaryShare, "canary-share", 0, "… that answers this share of the requests, in the name of the first")
	f.StringVar(&o.name, "name", "", "the model's name")
	f.StringVar(&o.version, "version", "1", "the version that answers claim")
	f.BoolVar(&o.raw, "no-normalise", false, "forget to normalise the input")
	f.BoolVar(&o.permute, "permute-classes", false, "answer with the classes in another order")
	f.Float64Var(&o.shift, "shift-score", 0, "add this to the second of two probabilities, as if the threshold lay that much lower")
	f.StringVar(&o.fail, "fail", "", "answer badly: "+strings.Join(failures, ", "))
	f.IntVar(&o.failEvery, "fail-every", 1, "on each n-th request")
	if err := f.Parse(args); err != nil {
		return err
	}
	if kind, _, _ := strings.Cut(o.fail, ":"); o.fail != "" && !slices.Contains(failures, kind) {
		return fmt.Errorf("--fail %s is unknown: use one of %s", o.fail, strings.Join(failures, ", "))
	}
	if *dir == "" || o.name == "" {
		return errors.New("--model and --name are both needed")
	}
	answers := os.Stdout
	if *stdio {
		os.Stdout = os.Stderr // where libraries may say what they like
	}
	backend, err := newBackend(*threads)
	if err != nil {
		return err
	}
	if o.model, err = loadModel(*dir, backend, *int8); err != nil {
		return fmt.Errorf("%s: %w", *dir, err)
	}
	if *canary != "" {
		if o.canary, err = loadModel(*canary, backend, *int8); err != nil {
			return fmt.Errorf("%s: %w", *canary, err)
		}
	}
	o.parameters = map[string]string{"runtime": "onnx-gomlx v0.3.4, gomlx v0.26.0 simplego", "precision": "fp32"}
	if *int8 {
		o.parameters["precision"] = "fp32 activations, int8 weights"
	}
	if *threads > 0 {
		o.parameters["threads"] = fmt.Sprint(*threads)
	}
	if *stdio {
		return serveLines(&server{options: o}, os.Stdin, answers)
	}
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	handler := &server{options: o}
	s := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	g := newGRPC(handler)
	if *grpcAddr != "" {
		l, err := net.Listen("tcp", *grpcAddr)
		if err != nil {
			return err
		}
		go g.Serve(l)
		log.Printf("serving %s %s on grpc://%s", o.name, o.version, l.Addr())
		if err := writePort(*grpcPortFile, l.Addr()); err != nil {
			return err
		}
	}
	if err := writePort(*portFile, l.Addr()); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		g.Stop()
		s.Shutdown(end)
	}()
	log.Printf("serving %s %s on http://%s", o.name, o.version, l.Addr())
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// writePort writes an address to a file that is never seen half written.
func writePort(file string, address net.Addr) error {
	if file == "" {
		return nil
	}
	if err := os.WriteFile(file+".partial", []byte(address.String()+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".partial", file)
}
