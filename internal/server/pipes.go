package server

import (
	"context"
	"time"

	"imprint"
	"imprint/api"
)

// PipeRef is the input of operations on one pipe.
type PipeRef struct {
	InstanceRef
	Pipe string `path:"pipe" maxLength:"63"`
}

func (s *Server) pipes(ctx context.Context, in *InstanceRef) (*answer[api.Pipes], error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	list, err := s.Pipes.ListPipes(ctx, id)
	if err != nil {
		return nil, err
	}
	return &answer[api.Pipes]{api.Pipes{Pipes: list}}, nil
}

type messageInput struct {
	PipeRef
	ID      string `query:"id" maxLength:"128" doc:"What the writer calls the message: the same as before is the same message, sent again."`
	RawBody []byte `contentType:"application/octet-stream"`
}

func (s *Server) writePipe(ctx context.Context, in *messageInput) (*nothing, error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	if len(in.RawBody) == 0 {
		return nil, imprint.Errorf(imprint.Invalid, "write", "message", "it is empty")
	}
	// huma reuses the body's buffer after the handler.
	return nil, s.Pipes.WritePipe(ctx, id, in.Pipe, in.ID, append([]byte(nil), in.RawBody...), callerOf(ctx).name)
}

type readInput struct {
	PipeRef
	Wait int `query:"wait" minimum:"0" maximum:"20" doc:"Seconds for which it waits for a message."`
}

// messageOutput is a message with its receipt; both are empty if there is none.
type messageOutput struct {
	ContentType string `header:"Content-Type"`
	Receipt     string `header:"X-Imprint-Message" doc:"By which the message is taken out; absent if there is none."`
	Body        []byte
}

func (s *Server) readPipe(ctx context.Context, in *readInput) (*messageOutput, error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	message, receipt, err := s.Pipes.ReadPipe(ctx, id, in.Pipe, time.Duration(in.Wait)*time.Second)
	if err != nil {
		return nil, err
	}
	return &messageOutput{octets, receipt, message}, nil
}

type takeInput struct {
	PipeRef
	Receipt string `path:"receipt" maxLength:"64"`
}

func (s *Server) takePipe(ctx context.Context, in *takeInput) (*nothing, error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	return nil, s.Pipes.TakePipe(ctx, id, in.Pipe, in.Receipt, callerOf(ctx).name)
}
