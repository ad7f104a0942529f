// Netty over TLS, as a client and as an echo server.
//
// java -cp JARS Netty.java client AUTHORITY NAME PORT
// java -cp JARS Netty.java server CERTIFICATE KEY

import io.netty.bootstrap.Bootstrap;
import io.netty.bootstrap.ServerBootstrap;
import io.netty.buffer.ByteBuf;
import io.netty.buffer.Unpooled;
import io.netty.channel.Channel;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelInitializer;
import io.netty.channel.SimpleChannelInboundHandler;
import io.netty.channel.nio.NioEventLoopGroup;
import io.netty.channel.socket.nio.NioServerSocketChannel;
import io.netty.channel.socket.nio.NioSocketChannel;
import io.netty.handler.codec.LengthFieldBasedFrameDecoder;
import io.netty.handler.codec.LengthFieldPrepender;
import io.netty.handler.ssl.SslContext;
import io.netty.handler.ssl.SslContextBuilder;
import io.netty.handler.ssl.SslHandler;
import java.io.File;
import java.net.InetSocketAddress;
import javax.net.ssl.SSLEngine;
import javax.net.ssl.SSLParameters;

public class Netty {
    static final int[] SIZES = {0, 1, 2, 255, 256, 65534, 65535};

    static void frame(Channel channel) {
        channel.pipeline().addLast(new LengthFieldBasedFrameDecoder(65537, 0, 2, 0, 2));
        channel.pipeline().addLast(new LengthFieldPrepender(2));
    }

    public static void main(String[] given) throws Exception {
        NioEventLoopGroup group = new NioEventLoopGroup(2);
        if (given[0].equals("client")) {
            connect(group, given[1], given[2], Integer.parseInt(given[3]));
        } else {
            serve(group, given[1], given[2]);
        }
        System.exit(0);
    }

    static ByteBuf message(int size) {
        byte[] bytes = new byte[size];
        for (int at = 0; at < size; at++) {
            bytes[at] = (byte) (at % 251);
        }
        return Unpooled.wrappedBuffer(bytes);
    }

    static void connect(NioEventLoopGroup group, String authority, String name, int port)
            throws Exception {
        SslContext context = SslContextBuilder.forClient().trustManager(new File(authority)).build();
        Bootstrap bootstrap = new Bootstrap().group(group).channel(NioSocketChannel.class);
        bootstrap.handler(new ChannelInitializer<Channel>() {
            @Override
            protected void initChannel(Channel channel) {
                SslHandler handler = context.newHandler(channel.alloc(), name, port);
                SSLEngine engine = handler.engine();
                SSLParameters parameters = engine.getSSLParameters();
                parameters.setEndpointIdentificationAlgorithm("HTTPS");
                engine.setSSLParameters(parameters);
                channel.pipeline().addLast(handler);
                frame(channel);
                channel.pipeline().addLast(new Client());
            }
        });
        Channel channel = bootstrap.connect("127.0.0.1", port).sync().channel();
        for (int size : SIZES) {
            channel.write(message(size));
        }
        channel.flush();
        channel.closeFuture().sync();
    }

    static class Client extends SimpleChannelInboundHandler<ByteBuf> {
        int next = 0;

        @Override
        protected void channelRead0(ChannelHandlerContext context, ByteBuf received) {
            if (!received.equals(message(SIZES[next]))) {
                throw new IllegalStateException("message " + next + " came back damaged");
            }
            next++;
            if (next == SIZES.length) {
                System.out.println("ok");
                context.close();
            }
        }

        @Override
        public void exceptionCaught(ChannelHandlerContext context, Throwable cause) {
            System.out.println(cause);
            context.close();
        }
    }

    static void serve(NioEventLoopGroup group, String certificate, String key) throws Exception {
        SslContext context =
                SslContextBuilder.forServer(new File(certificate), new File(key)).build();
        ServerBootstrap bootstrap = new ServerBootstrap().group(group);
        bootstrap.channel(NioServerSocketChannel.class);
        bootstrap.childHandler(new ChannelInitializer<Channel>() {
            @Override
            protected void initChannel(Channel channel) {
                channel.pipeline().addLast(context.newHandler(channel.alloc()));
                frame(channel);
                channel.pipeline().addLast(new Echo());
            }
        });
        Channel listener = bootstrap.bind("127.0.0.1", 0).sync().channel();
        int port = ((InetSocketAddress) listener.localAddress()).getPort();
        System.out.println("listening on tcp 127.0.0.1:" + port);
        while (System.in.read() >= 0) {
            // Until the input ends.
        }
    }

    static class Echo extends SimpleChannelInboundHandler<ByteBuf> {
        boolean drips = false;

        @Override
        protected void channelRead0(ChannelHandlerContext context, ByteBuf received) {
            if (received.equals(Unpooled.wrappedBuffer("drip".getBytes()))) {
                drips = true;
            } else if (drips) {
                // Past the prepender, each byte a record of its own.
                int size = received.readableBytes();
                ChannelHandlerContext before =
                        context.pipeline().context(LengthFieldBasedFrameDecoder.class);
                before.writeAndFlush(Unpooled.wrappedBuffer(new byte[] {(byte) (size >> 8)}));
                before.writeAndFlush(Unpooled.wrappedBuffer(new byte[] {(byte) size}));
                for (int at = 0; at < size; at++) {
                    byte[] one = {received.getByte(received.readerIndex() + at)};
                    before.writeAndFlush(Unpooled.wrappedBuffer(one));
                }
            } else {
                context.writeAndFlush(received.retain());
            }
        }
    }
}
