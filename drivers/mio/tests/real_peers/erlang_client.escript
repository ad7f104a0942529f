#!/usr/bin/env escript
%% Erlang's {packet, 2} client: escript erlang_client.escript PORT
%% Over TLS: escript erlang_client.escript AUTHORITY NAME PORT
%% Sends messages of every awkward size to an echo server, in bulk and byte by byte.

main([Port]) ->
    talk(gen_tcp, inet, Port, [], [0, 1, 2, 255, 256, 65534, 65535]);
main([Authority, Name, Port]) ->
    {ok, _} = application:ensure_all_started(ssl),
    Options = [{verify, verify_peer}, {cacertfile, Authority}, {server_name_indication, Name}],
    %% Byte by byte each is a record.
    talk(ssl, ssl, Port, Options, [0, 1, 2, 255, 256]).

talk(Transport, Settings, Port, More, Slow) ->
    Address = {127, 0, 0, 1},
    Options = [binary, {active, false}, {nodelay, true}, {packet, 2} | More],
    Messages = [message(Size) || Size <- [0, 1, 2, 255, 256, 65534, 65535]],
    {ok, Socket} = Transport:connect(Address, list_to_integer(Port), Options),
    %% One after another,
    [round_trip(Transport, Socket, Message) || Message <- Messages],
    %% all at once,
    Sender = self(),
    spawn_link(fun() -> [ok = Transport:send(Socket, M) || M <- Messages], Sender ! sent end),
    [{ok, Message} = Transport:recv(Socket, 0, 20000) || Message <- Messages],
    receive sent -> ok end,
    %% and byte by byte.
    ok = Settings:setopts(Socket, [{packet, raw}]),
    [byte_by_byte(Transport, Socket, message(Size)) || Size <- Slow],
    ok = Transport:close(Socket),
    io:format("ok~n").

message(Size) ->
    << <<(N rem 251)>> || N <- lists:seq(1, Size) >>.

round_trip(Transport, Socket, Message) ->
    ok = Transport:send(Socket, Message),
    {ok, Message} = Transport:recv(Socket, 0, 20000).

byte_by_byte(Transport, Socket, Message) ->
    Frame = <<(byte_size(Message)):16, Message/binary>>,
    [ok = Transport:send(Socket, <<Byte>>) || <<Byte>> <= Frame],
    {ok, Frame} = Transport:recv(Socket, byte_size(Frame), 20000).
